"""Run programs that nobody has read: Python or a command, with no network, no files of this machine but system ones,
and limits on time, memory, processes, disk and output.

`strong` needs Linux with user namespaces (kernel 5.14) and needs no root. Elsewhere there is `weak`, which holds limits
and keeps no secrets: it is for code that is clumsy, not for code that is hostile. What the processes are: `jail.py`.
"""

import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

import postmill
from postmill.io.errors import FAILED, REFUSED, ConfigError, StageError
from postmill.stages.shared.sandbox.jail import START

Kind = Literal["strong", "weak"]
_GRACE_S = 60.0
"""How long the keeper may take, beyond the program's own time, to start and to report."""
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(2)); from postmill.stages.shared.sandbox.jail import main; main()"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a program may use."""

    time_s: float = 10.0
    """Seconds by the clock, and two more of CPU time for each process."""
    memory_mb: int = 512
    """Memory of all its processes together, in MiB, and address space of each."""
    num_processes: int = 16
    """Processes and threads at a time; `weak` does not hold it."""
    disk_mb: int = 32
    """Files in its folder, in MiB. `weak`: each of them."""
    output_bytes: int = 1 << 20
    """Standard output and standard error, each."""


DEFAULT = Limits()


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended. Everything but `status` and `stdout` is for people to read."""

    status: Literal["ok", "failed", "crashed", "timeout", "memory", "output"]
    """ok: exit code 0. failed: another one. crashed: ended by a signal. The others: a limit, and it was killed."""
    has_ended: bool = False
    """Python only: the last line was reached. Exit code 0 alone also comes from `exit(0)` in the middle.

    The program shares its interpreter with this mark, so code that looks for it can forge it. Where that matters, judge
    `stdout` for given `stdin`, outside."""
    exit_code: int | None = None
    signal: str = ""
    stdout: str = ""
    stderr: str = ""
    cpu_s: float = 0.0

    @property
    def reason(self) -> str:
        """How it ended, in a word or two, like crashed:SIGSEGV."""
        return f"crashed:{self.signal}" if self.status == "crashed" else self.status


def run_python(
    source: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = DEFAULT,
    kind: Kind = "strong",
    packages: bool = False,
) -> Ran:
    """Run Python source in an interpreter of its own, which has the standard library.

    files: more files of its folder, by name. packages: it may also import what this environment has installed.
    Raises ConfigError (77) if `strong` cannot be had here, StageError (1) if the sandbox fails.
    """
    # not this environment's link to Python, which lies in a folder that programs do not see
    python = sys.executable if packages else os.path.realpath(sys.executable)
    argv = [python, "-I", "-B", *([] if packages else ["-S"]), "-c", START]
    read = [sys.base_prefix, os.path.realpath(sys.executable), *([sys.prefix, sys.executable] if packages else [])]
    return _run(argv, {**(files or {}), "program.py": source}, stdin, read, limits, kind)


def run_command(
    argv: Sequence[str],
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = DEFAULT,
    kind: Kind = "strong",
    read: Sequence[str] = (),
) -> Ran:
    """Run a command of the system's folders (/usr, /bin, /lib), named by its path.

    read: more files and folders that it may read. Raises as `run_python` does.
    """
    return _run(list(argv), dict(files or {}), stdin, list(read), limits, kind)


@functools.cache
def missing(kind: Kind) -> str:
    """Why this machine cannot run programs in that kind of sandbox; empty if it can."""
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, and this is {sys.platform}"
    try:
        ran = _run(["/bin/true"], {}, "", [], DEFAULT, kind, is_checked=True)
    except StageError as error:
        return str(error)
    return "" if ran.status == "ok" else f"/bin/true ended as {ran.reason}"


def require(kind: Kind) -> None:
    """Raises ConfigError (77) if programs cannot be run in that kind of sandbox here."""
    why = missing(kind)
    if not why:
        return
    remedy = "run on Linux"
    if kind == "strong" and not missing("weak"):
        remedy = (
            "allow user namespaces, or say --sandbox weak, which limits time and memory but lets programs read your"
            " files"
        )
    raise ConfigError(f"sandbox {kind}: {why}; {remedy}", REFUSED)


def _run(  # noqa: PLR0917  private, and called in three places
    argv: list[str],
    files: dict[str, str],
    stdin: str,
    read: list[str],
    limits: Limits,
    kind: Kind,
    *,
    is_checked: bool = False,
) -> Ran:
    for name in files:
        if "/" in name or name in {"", ".", "..", "stdin"}:
            raise ValueError(f"{name!r} cannot be the name of a file of the sandbox")
    if not is_checked:
        require(kind)
    order = msgspec.structs.asdict(limits) | {
        "argv": argv,
        "files": files,
        "stdin": stdin,
        "read": read,
        "kind": kind,
    }
    # what a model wrote may hold half a surrogate pair, which no file can
    data = json.dumps(order, ensure_ascii=False).encode("utf-8", "replace")
    ours, theirs = socket.socketpair()
    root = str(Path(postmill.__file__).parent.parent)
    with ours:
        with theirs:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", _BOOT, str(theirs.fileno()), root],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={},
                start_new_session=True,
                bufsize=0,
            )
        with keeper:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                ours.sendall(struct.pack("<I", len(data)) + data)
            outputs, report, is_flooded = _collect(keeper, ours, limits)
    return _read_report(report, outputs, is_flooded)


def _collect(
    keeper: subprocess.Popen[bytes], told: socket.socket, limits: Limits
) -> tuple[list[bytearray], bytes, bool]:
    """Both outputs, what the keeper says at the end, and whether there was too much output."""
    assert keeper.stdout is not None and keeper.stderr is not None
    outputs, report, is_flooded = [bytearray(), bytearray()], bytearray(), False
    deadline = time.monotonic() + limits.time_s + _GRACE_S
    with selectors.DefaultSelector() as selector:
        selector.register(keeper.stdout, selectors.EVENT_READ, outputs[0])
        selector.register(keeper.stderr, selectors.EVENT_READ, outputs[1])
        selector.register(told, selectors.EVENT_READ, report)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                keeper.kill()  # the program ends with it
                deadline = float("inf")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                into: bytearray = key.data
                if not data:
                    selector.unregister(key.fileobj)
                elif into is report or len(into) <= limits.output_bytes:
                    into += data
                if into is not report and len(into) > limits.output_bytes and not is_flooded:
                    is_flooded = True
                    told.shutdown(socket.SHUT_WR)  # the keeper ends the program
    return outputs, bytes(report), is_flooded


def _read_report(report: bytes, outputs: list[bytearray], is_flooded: bool) -> Ran:
    decoded: dict[str, Any] = json.loads(report) if report else {"problem": "no report"}
    out, err = (bytes(data).decode("utf-8", "replace") for data in outputs)
    if "problem" in decoded:
        raise StageError(f"the sandbox failed: {decoded['problem']} {err.strip()[-300:]}".strip(), FAILED)
    why, status = decoded["why"], decoded["status"]
    ran = {"stdout": out, "stderr": err, "cpu_s": decoded["seconds"]}
    if is_flooded:
        return Ran(status="output", **ran)
    if why in {"timeout", "memory"}:
        return Ran(status=why, **ran)
    if status is None:
        raise StageError("the sandbox was ended from outside", FAILED)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return Ran(status="timeout", **ran)
        return Ran(status="crashed", signal=signal.Signals(number).name, **ran)
    code = os.WEXITSTATUS(status)
    return Ran(status="failed" if code else "ok", exit_code=code, has_ended=decoded["has_ended"], **ran)
