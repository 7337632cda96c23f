"""A filter of system calls for a process that runs strangers' code: a list of calls that fail, checked by the kernel.

Programs keep files, pipes, threads, processes and sockets between processes. They lose what reaches past namespaces or
past limits on memory: other processes' memory, mounts, new namespaces, kernel keys, io_uring, BPF, clocks, memory that
no limit counts, and all sockets but AF_UNIX ones. Source: seccomp(2), <https://man7.org/linux/man-pages/man2/seccomp.2.html>.
"""

import ctypes
import errno
import platform
import struct

_X86, _ARM = 0, 1
_MACHINES = {"x86_64": (_X86, 0xC000003E), "aarch64": (_ARM, 0xC00000B7), "arm64": (_ARM, 0xC00000B7)}
"""Column of the table below, and the kernel's name of the machine's call numbers (AUDIT_ARCH_*)."""

_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # the memory and descriptors of other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # another view of files
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    # other namespaces: a new user namespace would give back every capability
    "unshare": (272, 97),
    "setns": (308, 268),
    # large, young parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # memory that limits of a process do not count
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
_SIGNALS: dict[str, tuple[int, int]] = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
_CLONE, _CLONE3, _SOCKET, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (41, 198), (234, 131), (302, 261)
_NEW_NAMESPACES = 0x7E020000
_AF_UNIX = 1
_X32 = 0x40000000
"""Call numbers from here on are those of a second interface of x86-64 kernels, which the table does not name."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENT_0 = 0, 4, 16
"""Offsets in the kernel's record of a call; the low half of an argument comes first on these machines."""
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def is_known_machine() -> bool:
    """Whether there is a table for this machine."""
    return platform.machine() in _MACHINES


def install(*, alone: bool, pid: int = 0) -> None:
    """Filter this process, and all it starts, from now on. Raises OSError where the kernel refuses.

    alone: the process has a process namespace of its own. If not, it may signal only itself, `pid`, too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = _program(*_MACHINES[platform.machine()], alone=alone, pid=pid)
    filters = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(filters))
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, head, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "seccomp")


def _program(column: int, arch: int, *, alone: bool, pid: int) -> bytes:
    """The filter, in the kernel's instructions of 8 bytes."""
    refused = [numbers[column] for numbers in (_REFUSED if alone else _REFUSED | _SIGNALS).values()]
    fail, allow = (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    program = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if column == _X86:
        program += [(_AT_LEAST, 0, 1, _X32), fail]
    for number in refused:
        if number is not None:
            program += [(_EQUAL, 0, 1, number), fail]
    # glibc falls back on clone, whose flags can be read
    program += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    program += _argument(_CLONE[column], (_ANY_BIT, 0, 1, _NEW_NAMESPACES), [fail, allow])
    program += _argument(_SOCKET[column], (_EQUAL, 1, 0, _AF_UNIX), [fail, allow])
    if not alone:
        program += _argument(_TGKILL[column], (_EQUAL, 1, 0, pid), [fail, allow])
        program += _argument(_PRLIMIT[column], (_EQUAL, 1, 0, 0), [fail, allow])
    return b"".join(struct.pack("HBBI", *each) for each in [*program, allow])


_Instruction = tuple[int, int, int, int]


def _argument(number: int, test: _Instruction, then: list[_Instruction]) -> list[_Instruction]:
    """A rule about the first argument of a call."""
    body = [(_LOAD, 0, 0, _ARGUMENT_0), test, *then]
    return [(_EQUAL, 0, len(body), number), *body]
