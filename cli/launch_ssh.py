"""`postmill launch --on ssh --host A --host B`: a stage on several machines over ssh, with its own exit code.

Each machine runs `postmill launch` with its own number, in this command's folder: they share a file system. ssh passes
no signals on, so its input stays open as long as the job may run; `--until-eof` there takes the end of input for a
SIGTERM. So machines stop, with a checkpoint, also when this one is gone.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postmill.io.errors import INTERNAL, STOPPED, UNAVAILABLE, StageError

if TYPE_CHECKING:
    from postmill.cli.launch import Job

_SSH_FAILED = 255
_POLL_S = 0.05
_GRACE_S = {STOPPED: 600.0}
"""How long the others may go on after a machine left with a code; a checkpoint may take a while."""
_GRACE_OTHERWISE_S = 5.0
_TO_STOP_S = 5.0
"""How long machines get to end their ranks before ssh is ended."""


def remote(job: "Job", node: int) -> str:
    """What the shell of machine `node` is given."""
    host = job.hosts[0].rpartition("@")[2]
    master = job.master or f"{host}:{20000 + os.getpid() % 20000}"
    inner = [sys.executable, "-m", "postmill.cli.main", "launch", "--ranks", str(job.ranks)]
    inner += ["--nodes", str(len(job.hosts)), "--node", str(node), "--master", master]
    inner += ["--hang-s", f"{job.hang_s:.0f}", "--until-eof", *job.command]
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(inner)}"


def submit(job: "Job") -> int:
    """Run on all machines and return the code of the one that failed first. Raises StageError (69) if ssh fails."""
    if shutil.which("ssh") is None:
        raise StageError("launch: ssh: not found", UNAVAILABLE)
    machines = [
        subprocess.Popen(
            ["ssh", "-o", "BatchMode=yes", host, remote(job, node)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if node else None,
            start_new_session=True,  # Ctrl-C reaches the ranks once, through us
        )
        for node, host in enumerate(job.hosts)
    ]

    def stop(*_: Any) -> None:
        for machine in machines:
            assert machine.stdin is not None
            machine.stdin.close()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        failed = _wait(machines, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for machine in machines:
            machine.kill()
            machine.wait()
    if not failed:
        return 0
    # machines whose peer is gone fail of that; the peer's own end says more
    node = next((node for node in failed if machines[node].returncode != INTERNAL), failed[0])
    if machines[node].returncode == _SSH_FAILED:
        raise StageError(f"launch: {job.hosts[node]}: ssh failed; what it said is above", UNAVAILABLE)
    return machines[node].returncode


def _wait(machines: list["subprocess.Popen[bytes]"], stop: Any) -> list[int]:
    """Until all are done, or enough time has passed since the first failed. Returns those that failed, first ones
    first."""
    failed: list[int] = []
    deadline, is_told = float("inf"), False
    while [machine for machine in machines if machine.poll() is None]:
        failed += [n for n, machine in enumerate(machines) if machine.returncode and n not in failed]
        if failed and deadline == float("inf"):
            code = machines[failed[0]].returncode
            deadline = time.monotonic() + _GRACE_S.get(code, _GRACE_OTHERWISE_S)
        if time.monotonic() > deadline:
            if is_told:
                return failed
            stop()
            is_told, deadline = True, time.monotonic() + _TO_STOP_S
        time.sleep(_POLL_S)
    return failed + [n for n, machine in enumerate(machines) if machine.returncode and n not in failed]
