"""The processes around a stranger's program. They need nothing but Python, and are told what to do on a socket.

    keeper   outside: reads the order, watches time and memory, kills, reaps, reports. Ends when the socket ends.
    init     first process of new user, process, mount, network, IPC and host name namespaces: builds a root folder of
             read-only system folders and an empty /tmp, gives up all rights, starts the program, reaps orphans.
    program  the stranger's, behind a filter of system calls and limits. When it ends, init ends, and the kernel ends
             whatever else it had started.

It starts once for every program, so it loads little: no pathlib, no shutil.

`weak` does without namespaces: the program sees this machine's files, and the keeper adopts and kills its orphans.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, NoReturn

from postmill.stages.shared.sandbox import seccomp

Order = dict[str, Any]

_NAMESPACES = 0x7E020000  # user, process, mount, network, IPC, host name, cgroup
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "arm64": 220}
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_RDONLY, _NOSUID, _NODEV = 1, 2, 4
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 4096, 16384, 1 << 18, 2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_CAPBSET_DROP = 1, 36, 24
_INSIDE, _NOBODY = 1000, 65534
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_HOME = "/tmp"  # noqa: S108  the program's own, in memory
_MOST_FILES = 64
_WATCH_MS = 20
_NONCE_BYTES = 32
_CHANNEL = 3

_libc = ctypes.CDLL(None, use_errno=True)

START = """
def start():
    import os
    nonce = os.read(3, 32)
    with open("program.py", "rb") as file:
        code = compile(file.read(), "program.py", "exec")
    def end():
        os.write(3, nonce)
    return code, end
code, end = start()
del start
import builtins, sys
builtins.exit = builtins.quit = sys.exit
del builtins, sys
exec(code, {"__name__": "__main__", "__builtins__": __builtins__, "__file__": "program.py"})
import sys
sys.stdout.flush()
end()
"""
"""Runs the program, and tells that it came to its end: one that leaves early has not passed what was to follow."""


def main() -> None:
    """The keeper. Argument: the descriptor of the socket."""
    with socket.socket(fileno=int(sys.argv[1])) as told:
        try:
            report = _keep(_receive(told), told)
        except OSError as error:
            report = {"problem": f"{error.strerror or error} ({error.filename or 'sandbox'})"}
        with contextlib.suppress(OSError):
            told.sendall(json.dumps(report).encode())


def _receive(told: socket.socket) -> Order:
    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = told.recv(min(1 << 16, size - len(data)))
            if not part:
                sys.exit(1)
            data += part
        return bytes(data)

    order: Order = json.loads(exactly(struct.unpack("<I", exactly(4))[0]))
    return order


def _keep(order: Order, told: socket.socket) -> dict[str, Any]:
    """Start the program, watch it, and say how it ended."""
    report_out, report_in = os.pipe()
    ready_out, ready_in = os.pipe()
    ours, channel = socket.socketpair()
    nonce = os.urandom(_NONCE_BYTES)
    ours.sendall(nonce)
    is_strong = order["kind"] == "strong"
    # memory counts before a kernel that runs short picks somebody else's process
    _write("/proc/self/oom_score_adj", "1000")
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    place = "" if is_strong else _make_folder()
    child = _new_process(is_strong)
    if child == 0:
        told.close()
        ours.close()
        os.close(report_out)
        os.close(ready_in)
        _child(order, place, ready_out, report_in, channel.fileno())
    channel.close()
    os.close(report_in)
    os.close(ready_out)
    try:
        if is_strong:
            _map_users(child)
        os.write(ready_in, b"1")
        why = _watch(order, child, told)
    finally:
        seconds = _end(child)
        if place:
            _remove_folder(place)
    report = _all_of(report_out)
    ours.setblocking(False)
    said = b""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):  # reset: the nonce was not read
        said = ours.recv(_NONCE_BYTES + 1)
    if not report and not why:
        return {"problem": "the sandbox's own process died"}
    if report[:1] == b"!":
        return {"problem": report[1:].decode(errors="replace")}
    status = struct.unpack("<i", report)[0] if report else None
    return {"why": why, "status": status, "has_ended": said == nonce, "seconds": seconds}


def _new_process(is_strong: bool) -> int:
    """A child, 0 inside of it; with namespaces of its own if it is to be strong."""
    if not is_strong:
        return os.fork()
    number = _SYS_CLONE[os.uname().machine]
    child: int = _libc.syscall(number, _NAMESPACES | signal.SIGCHLD, 0, 0, 0, 0)
    if child < 0:
        raise OSError(ctypes.get_errno(), "new namespaces are refused: " + os.strerror(ctypes.get_errno()))
    return child


def _map_users(child: int) -> None:
    """Give the child a user. Root's child becomes nobody, because no limit on processes holds for root."""
    folder = f"/proc/{child}"
    if os.geteuid() == 0:
        for name in ("gid_map", "uid_map"):
            _write(f"{folder}/{name}", f"0 0 1\n{_INSIDE} {_NOBODY} 1\n")
        return
    _write(f"{folder}/setgroups", "deny")
    _write(f"{folder}/gid_map", f"{_INSIDE} {os.getegid()} 1\n")
    _write(f"{folder}/uid_map", f"{_INSIDE} {os.geteuid()} 1\n")


def _watch(order: Order, child: int, told: socket.socket) -> str:
    """Wait for the child's end, or for a reason to end it: timeout, memory, or asked."""
    deadline = time.monotonic() + order["time_s"]
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(told, select.POLLIN)
    try:
        while True:
            ready = {number for number, _ in poll.poll(_WATCH_MS)}
            if handle in ready:
                return ""
            if ready:
                return "asked"
            if time.monotonic() > deadline:
                return "timeout"
            if _memory_kb(child) > order["memory_mb"] << 10:
                return "memory"
    finally:
        os.close(handle)


def _family(pid: int) -> list[int]:
    """A process and all below it. Those that end meanwhile are left out."""
    family, open_ = [], [pid]
    while open_:
        each = open_.pop()
        family.append(each)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                open_ += map(int, _read(f"/proc/{each}/task/{task}/children").split())
    return family


def _memory_kb(pid: int) -> int:
    """What a process and all below it hold, pages that they share counted once."""
    total = 0
    for each in _family(pid)[1:]:
        with contextlib.suppress(OSError):
            for line in _read(f"/proc/{each}/smaps_rollup").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total


def _end(child: int) -> float:
    """Kill and reap everything. Returns the CPU seconds that it took."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    while True:
        with contextlib.suppress(ProcessLookupError):
            # weak: orphans are ours, and may go on making more until none is left
            for pid in _family(os.getpid())[1:]:
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def _make_folder() -> str:
    import tempfile

    return tempfile.mkdtemp(prefix="sandbox-")


def _remove_folder(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _all_of(descriptor: int) -> bytes:
    data = os.read(descriptor, 512)
    os.close(descriptor)
    return data


def _child(order: Order, place: str, ready: int, report: int, channel: int) -> NoReturn:
    """Init, or in weak mode a parent of the program: never returns."""
    try:
        os.setsid()
        if os.read(ready, 1) != b"1":
            os._exit(1)
        os.close(ready)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if place:
            os.chdir(place)
        else:
            _build_root(order)
            _drop_rights()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for name, text in order["files"].items():
            _write(name, text)
        _write("stdin", order["stdin"])
        program = os.fork()
        if program == 0:
            _program(order, place, report, channel)
        os.close(channel)
        os.close(0)
        os.close(1)
        os.close(2)
        pid, status = 0, 0
        while pid != program:
            pid, status = os.wait()
        os.write(report, struct.pack("<i", status))
    except BaseException as error:
        os.write(report, f"!{error}".encode()[:512])
    os._exit(0)


def _program(order: Order, place: str, report: int, channel: int) -> NoReturn:
    """Become the stranger's program."""
    try:
        stdin = os.open("stdin", os.O_RDONLY)
        os.unlink("stdin")
        os.dup2(stdin, 0)
        if channel != _CHANNEL:
            os.dup2(channel, _CHANNEL)
        os.set_inheritable(_CHANNEL, True)
        for number in range(_CHANNEL + 1, 256):
            if number != report:  # closes by itself when the program starts; until then failures go there
                with contextlib.suppress(OSError):
                    os.close(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        _limit(order)
        home = place or _HOME
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": home,
            "TMPDIR": home,
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        if seccomp.is_known_machine():
            seccomp.install(alone=not place, pid=os.getpid())
        elif not place:
            raise OSError(0, "no filter of system calls is known for this machine")
        os.execve(order["argv"][0], order["argv"], environment)
    except BaseException as error:
        os.write(report, f"!{error}".encode()[:512])
    os._exit(127)


def _limit(order: Order) -> None:
    seconds = int(order["time_s"]) + 2
    for what, most in (
        (resource.RLIMIT_AS, order["memory_mb"] << 20),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, order["disk_mb"] << 20),
        (resource.RLIMIT_NOFILE, _MOST_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, order["num_processes"]),
    ):
        if what == resource.RLIMIT_NPROC and order["kind"] == "weak":
            continue  # it would count everything else that this user runs
        hard = resource.getrlimit(what)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))


def _drop_rights() -> None:
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if os.getuid() != _INSIDE:
        os.setgroups([])
        os.setresgid(_INSIDE, _INSIDE, _INSIDE)
        os.setresuid(_INSIDE, _INSIDE, _INSIDE)
    os.umask(0o022)


def _build_root(order: Order) -> None:
    """A root folder of this process's own: system folders to read, a few devices, and /tmp of limited size.

    It is built on top of /proc, which nothing here needs any more, and neither does the program.
    """
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/proc", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    root = "/proc"
    for name in ("tmp", "dev", "etc"):
        os.mkdir(f"{root}/{name}")
    for path in dict.fromkeys([*_SYSTEM, *order["read"]]):
        _show(root, path)
    for name in _DEVICES:
        _write(f"{root}/dev/{name}", "")
        _mount(f"/dev/{name}", f"{root}/dev/{name}", "", _MS_BIND)
    if os.path.exists("/etc/ld.so.cache"):
        _show(root, "/etc/ld.so.cache")
    _mount("tmpfs", f"{root}{_HOME}", "tmpfs", _NOSUID | _NODEV, f"size={order['disk_mb']}m,nr_inodes=4096,mode=1777")
    _set_attributes(root, _RDONLY, recursive=False)
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir(_HOME)


def _show(root: str, path: str) -> None:
    """Make a folder or file of this machine readable at its own path under `root`."""
    inside = root + path
    if not os.path.exists(path) or os.path.exists(inside):
        return
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), inside)
        return
    if os.path.isdir(path):
        os.mkdir(inside)
    else:
        _write(inside, "")
    _mount(path, inside, "", _MS_BIND | _MS_REC)
    _set_attributes(inside, _RDONLY | _NOSUID | _NODEV, recursive=True)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    found = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(found, f"mount {target}")


def _set_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    found = _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, wanted, ctypes.c_size_t(len(wanted)))
    _check(found, f"read-only {path}")


def _check(found: int, what: str) -> None:
    if found:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
