"""`postmill launch --ranks N STAGE ...`: several processes of a stage, as one command.

Like torchrun, with the stage's own exit code: 75 still means "run me again". A signal is passed on to every rank. When
a rank ends badly, is stopped, or gives no sign of life, the others get a moment to say the same, then are ended.
"""

import importlib
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import msgspec

from postmill.cli.launch_watch import Watch, start
from postmill.io.errors import ConfigError
from postmill.stages.shared.ports import free_port

USAGE = """Run a stage in several processes, and leave with its exit code.

usage: postmill launch --ranks N [--nodes M ...] STAGE ...

example:
  postmill launch --ranks 2 train packed/ -m base/ -o run/ --bins-per-step 16
  postmill launch --on slurm --nodes 2 --ranks 8 --sbatch --time=24:00:00 train packed/ -m base/ -o run/
  postmill launch --on ssh --host a --host b --ranks 8 train packed/ -m base/ -o run/

options:
  --ranks n            Processes to start on each machine: one for each GPU.
  --nodes m            Machines (default 1). They share a file system.
  --node i             Which of them this one is, from 0; every machine runs the command with its own number.
  --master host:port   Where rank 0 listens; the same on every machine.
  --hang-s seconds     End the job when a rank gave no sign of life for so long (default 1800; 0 never).
  --on slurm           Submit the job with sbatch, wait for it, and leave with its exit code; 75 is queued again.
  --sbatch option      One more option for sbatch; may be repeated.
  --on ssh             Run on the machines of --host over ssh, each in this folder, and leave with the stage's code.
  --host name          A machine for --on ssh, as ssh knows it; once for each. The first one's name is that of rank 0.
  --until-eof          Take the end of standard input for a SIGTERM: how --on ssh stops its machines.
"""


class Job(msgspec.Struct):
    """What to run where."""

    command: list[str]
    ranks: int
    nodes: int = 1
    node: int = 0
    master: str = ""
    hang_s: float = 1800.0
    on: str = ""
    sbatch: list[str] = []
    hosts: list[str] = []
    until_eof: bool = False


def run(argv: list[str]) -> int:
    """Returns the exit code of the stage, 0 if all ranks did. Raises ConfigError (2), StageError (1)."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    job = parse(argv)
    if job.on:
        # they read `Job`, so they are imported when this is whole
        if job.on == "slurm":
            from postmill.cli.launch_slurm import submit
        else:
            from postmill.cli.launch_ssh import submit
        return submit(job)
    with tempfile.TemporaryDirectory(prefix="postmill-launch-") as folder:
        ranks = start(
            [sys.executable, "-m", "postmill.cli.main", *job.command],
            environments(job),
            Path(folder),
            has_stdin=not job.until_eof,
        )
        watch = Watch(ranks, job.hang_s)
        if job.until_eof:
            threading.Thread(target=_stop_at_eof, args=(watch,), daemon=True).start()
        before = {number: signal.signal(number, watch.pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return watch.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            watch.end()


def _stop_at_eof(watch: Watch) -> None:
    sys.stdin.buffer.read()
    watch.pass_on(signal.SIGTERM, None)


def environments(job: Job) -> list[dict[str, str]]:
    """What each rank of this machine is told, as torchrun does."""
    host, _, port = job.master.rpartition(":")
    common = {
        "WORLD_SIZE": job.nodes * job.ranks,
        "LOCAL_WORLD_SIZE": job.ranks,
        "MASTER_ADDR": host or "127.0.0.1",
        "MASTER_PORT": port or free_port(),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        common["OMP_NUM_THREADS"] = max(1, len(os.sched_getaffinity(0)) // job.ranks)
    return [
        {name: str(value) for name, value in (common | {"RANK": job.node * job.ranks + at, "LOCAL_RANK": at}).items()}
        for at in range(job.ranks)
    ]


def parse(argv: list[str]) -> Job:
    """The job that argv asks for. Raises ConfigError (2)."""
    rest, given = list(argv), {}
    lists: dict[str, list[str]] = {"--sbatch": [], "--host": []}
    until_eof = False
    while rest and rest[0].startswith("-"):
        name, has_value, value = rest.pop(0).partition("=")
        name = "--ranks" if name == "-n" else name
        if name == "--until-eof" and not has_value:
            until_eof = True
            continue
        if name not in ("--ranks", "--nodes", "--node", "--master", "--hang-s", "--on", *lists):
            raise ConfigError(f"launch: {name}: expected --ranks N before the stage; see postmill launch --help")
        if not has_value:
            value = rest.pop(0) if rest else ""
        if name in lists:
            lists[name].append(value)
        else:
            given[name] = value
    if "--ranks" not in given:
        raise ConfigError(f"launch: {rest[0] if rest else ''}: expected --ranks N before the stage")
    job = Job(
        rest,
        ranks=_number(given, "--ranks", 1),
        nodes=_number(given, "--nodes", 1),
        node=_number(given, "--node", 0),
        master=given.get("--master", ""),
        hang_s=float(_number(given, "--hang-s", 0, 1800)),
        on=given.get("--on", ""),
        sbatch=lists["--sbatch"],
        hosts=lists["--host"],
        until_eof=until_eof,
    )
    _check(job)
    return job


def _number(given: dict[str, str], name: str, least: int, default: int | None = None) -> int:
    value = given.get(name, str(least if default is None else default))
    if not value.isdecimal() or int(value) < least:
        raise ConfigError(f"launch: {name} {value!r}: expected a number from {least} up")
    return int(value)


def _check(job: Job) -> None:
    from postmill.stages.table import STAGES

    if not job.command:
        raise ConfigError("launch: no stage to run; see postmill launch --help")
    name = job.command[0]
    if name not in STAGES:
        raise ConfigError(f"launch: {name}: no such stage; one of {', '.join(STAGES)}")
    if not importlib.import_module(f"postmill.stages.{name}.config").STAGE.ranks:
        raise ConfigError(f"launch: {name} runs in one process; run postmill {name}")
    if job.on not in ("", "slurm", "ssh"):
        raise ConfigError(f"launch: --on {job.on}: expected slurm or ssh")
    if (job.on == "ssh") != bool(job.hosts):
        raise ConfigError("launch: --on ssh and --host go together: a --host for each machine")
    if job.on == "ssh" and job.nodes not in (1, len(job.hosts)):
        raise ConfigError(f"launch: --nodes {job.nodes}: there are {len(job.hosts)} of --host; leave it out")
    if job.sbatch and job.on != "slurm":
        raise ConfigError("launch: --sbatch: only with --on slurm")
    if job.node >= job.nodes:
        raise ConfigError(f"launch: --node {job.node}: machines of {job.nodes} count from 0")
    if job.nodes > 1 and not job.on and ":" not in job.master:
        raise ConfigError("launch: --nodes: pass --master HOST:PORT of the first machine, the same on all")
