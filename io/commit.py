"""Writing an artifact so that it exists whole or not at all.

Work goes to a hidden sibling, is flushed file by file, gets its manifest last, and is renamed into place without ever
replacing what is there. A lock beside it lets one writer in; the kernel drops it when the process dies, so a lock can
never be stale. Whoever holds the lock knows that other temporary siblings of this name are dead, and removes them.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from postmill.io.errors import EXISTS, ArtifactError
from postmill.io.manifest import MANIFEST, SIDE_FILES, Manifest

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2


class Staging:
    """The place where an artifact is being made. Leaving the block without `commit` removes it.

    Raises ArtifactError (73) when another process is writing the same artifact.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.parent / f".{target.name}.tmp-{os.urandom(6).hex()}"
        self._lock = -1

    def __enter__(self) -> Self:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock_beside(self.target)
        for dead in self.target.parent.glob(f".{glob_escape(self.target.name)}.tmp-*"):
            shutil.rmtree(dead, ignore_errors=True)
        self.path.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        unlock_beside(self.target, self._lock)

    def commit(self, manifest: Manifest, *, replace: bool = False) -> None:
        """Flush everything, write the manifest, rename into place. With `replace`, swap with what is there.

        Raises ArtifactError (73) if the target exists and `replace` is false; OSError as the disk gives it.
        """
        write_durable(self.path / MANIFEST, manifest.to_json())
        self.commit_folder(replace=replace)

    def commit_folder(self, *, replace: bool = False) -> None:
        """`commit` for a folder that is no artifact and has no manifest."""
        make_durable(self.path)
        if replace and self.target.exists():
            _rename(self.path, self.target, _EXCHANGE)
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            try:
                _rename(self.path, self.target, _NOREPLACE)
            except FileExistsError:
                raise ArtifactError(f"{self.target}: exists; choose another -o, or pass --replace", EXISTS) from None
        fsync_dir(self.target.parent)


def glob_escape(name: str) -> str:
    """`name` as a pattern that matches only itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock_path(target: Path) -> Path:
    return target.parent / f".{target.name}.lock"


def lock_beside(target: Path) -> int:
    """Take the writer's lock of `target`; returns its file descriptor. Raises ArtifactError (73) if it is held."""
    path = _lock_path(target)
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise ArtifactError(f"{target}: being written by process {holder}; wait for it", EXISTS) from None
        try:
            current = path.stat()
        except FileNotFoundError:
            os.close(lock)
            continue
        # A lock file that was unlinked by its last holder between our open and our flock guards nothing.
        if current.st_ino == os.fstat(lock).st_ino:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return lock
        os.close(lock)


def unlock_beside(target: Path, lock: int) -> None:
    """Give the lock of `target` back and remove its file."""
    _lock_path(target).unlink(missing_ok=True)
    os.close(lock)


def remove_artifact(path: Path) -> None:
    """Remove a whole artifact. Killed halfway, what is left has the name of a dead temporary, not the artifact's."""
    dead = path.parent / f".{path.name}.tmp-{os.urandom(6).hex()}"
    path.rename(dead)
    shutil.rmtree(dead)


def write_durable(path: Path, data: bytes) -> None:
    """Write a small file through to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_durable(root: Path) -> None:
    """Flush every file and folder under `root`, and give files the mode the umask asks for."""
    umask = os.umask(0o022)
    os.umask(umask)
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            # safetensors writes 0600 whatever the umask says
            path.chmod(0o666 & ~umask)
            if name not in SIDE_FILES:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        fsync_dir(Path(folder))


def fsync_dir(path: Path) -> None:
    """Flush the entries of a folder."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _rename(source: Path, target: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL) and flags == _NOREPLACE:
        # File systems without renameat2 flags: the lock already keeps other writers of ours out.
        if target.exists() or stat.S_ISLNK(_mode(target)):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)
        return
    raise OSError(code, os.strerror(code), str(target))


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return 0
