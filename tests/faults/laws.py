"""What must hold of a command that makes an artifact, wherever it is killed and whatever the disk refuses."""

import errno
import shutil
from pathlib import Path

from faults.lab import Lab

from postmill.io.errors import IO_ERROR
from postmill.io.manifest import load_artifact, verify_files


def digest(path: Path) -> str:
    """Digest of a whole artifact; fails the test if it is anything less."""
    artifact = load_artifact(path)
    assert verify_files(artifact) == []
    return artifact.digest


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def survives_kills(lab: Lab, argv: list[str], folder: Path, output: Path, step: int = 1) -> int:
    """Kill at every `step`-th operation, before it and half-way through it; the output is whole or absent, and the same
    command then makes equal bytes. Returns the number of operations."""
    clear(folder)
    whole = lab.run(argv, folder)
    assert whole.code == 0, whole.stderr
    expected = digest(output)
    for k in range(1, whole.count + 1, step):
        for mode in "kh":
            clear(folder)
            killed = lab.run(argv, folder, mode=mode, k=k)
            assert killed.code in (-9, 0), (k, mode, killed)
            if output.exists():
                assert digest(output) == expected, f"{mode}{k}: half an artifact"
            again = lab.run(argv, folder)
            assert again.code == 0, (k, mode, again.stderr)
            assert digest(output) == expected, f"{mode}{k}: other bytes after a kill"
            left = [p.name for p in folder.iterdir() if ".tmp-" in p.name]
            assert left == [], f"{mode}{k}: {left} left over"  # an empty lock file may stay: it locks nothing
    return whole.count


def survives_full_disk(lab: Lab, argv: list[str], folder: Path, output: Path, step: int = 1) -> None:
    """From every `step`-th operation on, the disk is full, or broken: exit 74, one line, nothing left, nothing half."""
    clear(folder)
    count = lab.run(argv, folder).count
    expected = digest(output)
    for k in range(1, count + 1, step):
        for error in (errno.ENOSPC, errno.EIO):
            clear(folder)
            failed = lab.run(argv, folder, mode="e", k=k, error=error)
            if failed.code != 0:  # the flush of the parent folder after the rename may fail with the artifact in place
                assert failed.code == IO_ERROR, (k, failed)
                assert len(failed.stderr.strip().splitlines()) == 1, failed.stderr
            if output.exists():
                assert digest(output) == expected
            assert [p.name for p in folder.iterdir() if ".tmp-" in p.name] == [], k
