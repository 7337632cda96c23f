"""The process that workers are forked from: it has loaded Python and our own modules once, so that a worker that had to
be ended is replaced in milliseconds, not in a third of a second.

Each worker has a keeper between itself and this process, which waits for its end, tells how it came and leaves nothing
behind. A function that ends its parent so ends its keeper, and with it itself alone. No function of a user is loaded
here, nothing runs beside the one thread that forks.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys

from postmill.stages.reward import worker
from postmill.stages.shared.child_limits import bare_environment, end_with_parent

_MESSAGE = 64
_NUMBER = struct.Struct("<i")


class Nursery:
    """The pool's side of it: starts the process, and asks it for workers."""

    def __init__(self, memory_mb: int) -> None:
        self._memory_mb = memory_mb
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-P", "-m", "postmill.stages.reward.nursery", str(other.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(other.fileno(),),
            env=bare_environment(),
        )
        other.close()

    @property
    def is_alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def start(self, tasks: int, answers: int) -> int:
        """Ask for a worker that reads `tasks` and writes `answers`. Returns where its process's number and, in the end,
        how it ended are told: two numbers of four bytes. OSError if the nursery is gone."""
        told, telling = os.pipe()
        try:
            socket.send_fds(self._socket, [_NUMBER.pack(self._memory_mb)], [tasks, answers, telling])
        except OSError:
            os.close(told)
            raise
        finally:
            os.close(telling)
        return told

    def close(self) -> None:
        """End it. Workers have been ended before."""
        self._socket.close()
        self._process.wait()


def read_number(told: int) -> int | None:
    """The next number of what `Nursery.start` returned; None if a keeper is gone before it could tell."""
    data = os.read(told, _NUMBER.size)
    return int(_NUMBER.unpack(data)[0]) if len(data) == _NUMBER.size else None


def _keep(tasks: int, answers: int, telling: int, memory_mb: int, nursery: int) -> None:
    """A keeper: start the worker, tell its number, wait, tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end_with_parent()
    if os.getppid() != nursery:
        return
    keeper = os.getpid()
    pid = os.fork()
    if not pid:
        os.close(telling)
        worker.serve(tasks, answers, memory_mb, keeper)
        return
    os.close(tasks)
    os.close(answers)
    with contextlib.suppress(BrokenPipeError):
        os.write(telling, _NUMBER.pack(pid))
        _, status = os.waitpid(pid, 0)
        os.write(telling, _NUMBER.pack(os.waitstatus_to_exitcode(status)))


def main() -> None:
    """Fork keepers until the pool goes. Arguments: descriptor of the socket, the pool's process."""
    end_with_parent()
    if os.getppid() != int(sys.argv[2]):
        return
    asked = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are nobody's zombies
    me = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, _MESSAGE, 3)
        if not message:
            return
        tasks, answers, telling = descriptors
        if not os.fork():
            code = 1
            try:
                asked.close()
                _keep(tasks, answers, telling, _NUMBER.unpack(message)[0], me)
                code = 0
            finally:
                os._exit(code)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    main()
