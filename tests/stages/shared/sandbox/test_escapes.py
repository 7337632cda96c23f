"""Programs that try to get out of the sandbox, or past its limits. Each says ESCAPED if it did; none may.

What could as well fail for a reason of its own is run outside first, where it has to work.
"""

import contextlib
import os
import platform
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from postmill.stages.shared.sandbox.run import Limits, Ran, missing, run_python

pytestmark = pytest.mark.skipif(bool(missing("strong")), reason=missing("strong"))

LIMITS = Limits(time_s=20, memory_mb=256, num_processes=12, disk_mb=8, output_bytes=10_000)


class Host(msgspec.Struct):
    """What lies outside: a secret in a file, an environment and a descriptor; servers; a process."""

    secret: str
    path: str
    descriptor: int
    port: int
    abstract: str
    victim: int
    mark: str

    def prelude(self) -> str:
        """Names for programs, and a name that all their processes have."""
        return (
            f"SECRET_PATH, PORT, ABSTRACT, VICTIM = {self.path!r}, {self.port}, {self.abstract!r}, {self.victim}\n"
            "import ctypes, errno, os, signal, socket, sys, time\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            f"libc.prctl(15, {self.mark.encode()!r}, 0, 0, 0)\n"
        )


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    secret, mark = secrets.token_hex(16), "x" + secrets.token_hex(6)
    path = tmp_path / "secret"
    path.write_text(secret)
    monkeypatch.setenv("HF_TOKEN", secret)
    descriptor = os.open(path, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    unix.bind("\0" + mark)
    unix.listen()
    for server in (tcp, unix):
        threading.Thread(target=_tell, args=(server, secret), daemon=True).start()
    yield Host(secret, str(path), descriptor, tcp.getsockname()[1], mark, victim.pid, mark)
    assert victim.poll() is None, "a process outside was ended"
    assert path.read_text() == secret
    assert not _named(mark), "processes are left"
    victim.kill()
    with victim:
        pass
    for server in (tcp, unix):
        server.close()
    os.close(descriptor)


def _tell(server: socket.socket, secret: str) -> None:
    """Tell the secret to everybody who comes."""
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client:
                client.sendall(secret.encode())


def _named(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            found += [path.parent.name] if path.read_text().strip() == mark else []
    return found


OUTSIDE_TOO = {
    "reads a file": "print(open(SECRET_PATH).read())",
    "climbs up": "print(open('/'.join(['..'] * 40) + SECRET_PATH).read())",
    "follows a link of its own": "os.symlink(SECRET_PATH, 'link'); print(open('link').read())",
    "hard link": "os.link(SECRET_PATH, 'hard'); print(open('hard').read())",
    "walks from the root": """
for folder, _, files in os.walk(os.path.dirname(SECRET_PATH)):
    for name in files:
        print(open(os.path.join(folder, name)).read())
""",
    "connects by TCP": "print(socket.create_connection(('127.0.0.1', PORT), 2).recv(99).decode())",
    "connects to an abstract socket": """
s = socket.socket(socket.AF_UNIX); s.connect('\\0' + ABSTRACT); print(s.recv(99).decode())
""",
    "reads a process's environment": "print(open(f'/proc/{VICTIM}/environ').read())",
    "shell": "os.system('cat ' + SECRET_PATH)",
    "reads its own environment": "print(os.environ)",
    "reads descriptors": """
for n in range(3, 256):
    try: print(os.pread(n, 99, 0).decode())
    except OSError: pass
""",
}


@pytest.mark.parametrize("program", OUTSIDE_TOO.values(), ids=list(OUTSIDE_TOO))
def test_no_secret_comes_out(program: str, host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "outside"
    folder.mkdir()
    source = host.prelude() + program
    outside = subprocess.run(
        [sys.executable, "-c", source],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        pass_fds=[host.descriptor],
    )
    assert host.secret in outside.stdout, f"this attack does not work outside either: {outside.stderr}"
    ran = run_python(source, limits=LIMITS)
    assert host.secret not in ran.stdout + ran.stderr
    assert ran.status in {"ok", "failed"}, ran


CALLS = {
    "kills a process outside": "os.kill(VICTIM, signal.SIGKILL)",
    "kills its parent": "os.kill(os.getppid(), 0); libc.kill(1, 9); time.sleep(.1); raise OSError(1, 'it lives')",
    "traces its parent": "check(libc.ptrace(16, 1, 0, 0))",
    "reads its parent's memory": "check(libc.process_vm_readv(1, 0, 0, 0, 0, 0))",
    "writes to system folders": "open('/usr/bin/sh2', 'w')",
    "writes to Python's library": "open(os.__file__, 'a')",
    "writes to the root": "open('/x', 'w')",
    "mounts over a folder": "check(libc.mount(b'tmpfs', b'/usr', b'tmpfs', 0, b''))",
    "makes the root writable": "check(libc.mount(b'', b'/', b'', 32, b''))",
    "unmounts": "check(libc.umount2(b'/tmp', 2))",
    "changes its root": "os.mkdir('r'); os.chroot('r')",
    "new user namespace": "check(libc.unshare(0x10000000))",
    "new namespaces by clone": "check(libc.syscall(SYS_clone, 0x10020000 | 17, 0, 0, 0, 0))",
    "new namespaces by clone3": """
args = (ctypes.c_uint64 * 11)(0x10020000, 0, 0, 0, 17); check(libc.syscall(435, args, ctypes.sizeof(args)))
""",
    "becomes root": "os.setuid(0)",
    "makes a device": "os.mknod('disk', 0o60666, os.makedev(254, 0)); open('disk', 'rb').read(1)",
    "reads the machine's memory": "open('/dev/mem', 'rb')",
    "raises its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "memory without a name": "os.memfd_create('x')",
    "shared memory": "check(libc.shmget(0, 1 << 20, 0o1600))",
    "shared memory by name": "open('/dev/shm/x', 'w')",
    "keys of the kernel": "check(libc.syscall(SYS_add_key, b'user', b'x', b'y', 1, -3))",
    "io_uring": "check(libc.syscall(425, 8, ctypes.create_string_buffer(200)))",
    "BPF": "check(libc.syscall(SYS_bpf, 0, ctypes.create_string_buffer(200), 48))",
    "socket of the kernel": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "socket of the hypervisor": "socket.socket(40, socket.SOCK_STREAM)",
    "raw socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "sets the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "host name": "socket.sethostname('x')",
    "types on the terminal": "open('/dev/tty', 'w')",
}
_NUMBERS = {
    "x86_64": "SYS_clone, SYS_add_key, SYS_bpf = 56, 248, 321",
    "aarch64": "SYS_clone, SYS_add_key, SYS_bpf = 220, 217, 280",
}
_TRY = """
def check(found):
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
try:
    exec(PROGRAM)
except (OSError, ValueError) as error:
    print('REFUSED', error)
else:
    print('ESCAPED')
"""


@pytest.mark.parametrize("program", CALLS.values(), ids=list(CALLS))
def test_no_call_gets_out(program: str, host: Host) -> None:
    source = f"{host.prelude()}PROGRAM = {program!r}\n{_NUMBERS.get(platform.machine(), '')}\n{_TRY}"
    ran = run_python(source, limits=LIMITS)
    assert ran.stdout.startswith("REFUSED"), ran


def bound(host: Host, program: str, **changes: float) -> Ran:
    return run_python(host.prelude() + program, limits=msgspec.structs.replace(LIMITS, **changes))


def test_a_fork_bomb_is_held(host: Host) -> None:
    ran = bound(host, "while True:\n    try: os.fork()\n    except OSError: pass\n", time_s=1)
    assert ran.status == "timeout"


def test_processes_are_counted(host: Host) -> None:
    program = """
import threading
made = 0
try:
    for _ in range(50):
        if os.fork() == 0: time.sleep(60)
        made += 1
except OSError: pass
try:
    for _ in range(50):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        made += 1
except RuntimeError: pass
print(made)
"""
    ran = bound(host, program)
    assert ran.status == "ok" and 5 <= int(ran.stdout) < LIMITS.num_processes


def test_a_memory_bomb_is_held(host: Host) -> None:
    ran = bound(host, "x = b'x' * (1 << 30)")
    assert ran.status == "failed" and "MemoryError" in ran.stderr


def test_memory_of_many_processes_is_added(host: Host) -> None:
    program = """
for _ in range(5):
    if os.fork() == 0:
        x = bytearray(os.urandom(1 << 20) * 100)
        time.sleep(60)
time.sleep(60)
"""
    assert bound(host, program, time_s=60).status == "memory"


@pytest.mark.parametrize(
    "program",
    [
        "f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 16))",
        "for n in range(100):\n    with open(f'{n}', 'wb') as f: f.write(b'x' * (1 << 20))",
        "for n in range(100000): os.mkdir(str(n))",
    ],
    ids=["one file", "many files", "many folders"],
)
def test_the_disk_is_held(program: str, host: Host) -> None:
    ran = bound(host, program)
    assert ran.status in {"failed", "crashed"}
    assert ran.signal == "SIGXFSZ" or "No space left" in ran.stderr or "too large" in ran.stderr


@pytest.mark.parametrize("number", [1, 2], ids=["stdout", "stderr"])
def test_a_flood_of_output_is_cut(number: int, host: Host) -> None:
    ran = bound(host, f"while True: os.write({number}, b'x' * 4096)")
    assert ran.status == "output"
    assert len(ran.stdout) + len(ran.stderr) < LIMITS.output_bytes + (1 << 16)


@pytest.mark.parametrize(
    "program",
    [
        "time.sleep(1000)",
        "for n in range(1, 64):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: pass",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "sys.stdin.close(); os.close(1); os.close(2); time.sleep(1000)",
    ],
    ids=["sleep", "ignores signals", "stops itself", "closes its outputs"],
)
def test_time_is_held(program: str, host: Host) -> None:
    assert bound(host, program, time_s=0.5).status == "timeout"


def test_daemons_end_with_the_program(host: Host) -> None:
    program = """
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
print('done')
"""
    ran = bound(host, program, time_s=100)
    assert (ran.status, ran.stdout) == ("ok", "done\n")


def test_signals_to_all_reach_nobody_outside(host: Host) -> None:
    ran = bound(host, "if os.fork() == 0: time.sleep(100)\nos.kill(-1, signal.SIGKILL); print(os.wait()[1])")
    assert (ran.status, ran.stdout) == ("ok", "9\n")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="calls of other kinds are those of x86-64")
def test_other_kinds_of_calls_are_no_way_around(host: Host) -> None:
    assert (
        "Operation not permitted"
        in bound(host, "libc.syscall(0x40000000 | 101, 16, 1, 0, 0); print(os.strerror(ctypes.get_errno()))").stdout
    )
    # mov eax, 20 (getpid of 32-bit calls); int 0x80; ret
    program = """
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3]))
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))(), 'ESCAPED')
"""
    ran = bound(host, program)
    assert ran.status == "crashed" and "ESCAPED" not in ran.stdout


def test_leaving_early_is_no_success(host: Host) -> None:
    for leave in ("exit(0)", "os._exit(0)", "raise SystemExit"):
        ran = bound(host, f"{leave}\nassert False")
        assert ran.status == "ok" and not ran.has_ended
    assert bound(host, "assert True").has_ended
