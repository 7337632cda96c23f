"""Help comes at once and loads nothing heavy; mistakes on the command line end with 2 and one line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from postmill.cli.main import STAGES, TOOLS

MAIN = [sys.executable, "-P", "-m", "postmill.cli.main"]


def run(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *argv], capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL, check=False
    )


@pytest.mark.parametrize("command", [*STAGES, *TOOLS])
def test_help_is_printed_and_exits_0(command: str) -> None:
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: postmill" in done.stdout


def test_help_is_quick() -> None:
    """The bar is 100 ms on a quiet machine; here only the ratio to a bare interpreter can be held under load."""

    def quickest(argv: list[str]) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - started)
        return min(times)

    bare = quickest([sys.executable, "-P", "-c", "import msgspec"])
    for stage in STAGES:
        assert quickest([*MAIN, stage, "--help"]) < max(0.1, 4 * bare)


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        (["tokenise"], 2, "tokenise: no such command; did you mean tokenize?; see postmill --help"),
        (["pack", "nowhere/", "--row-tokens", "8", "-o", "x"], 66, "nowhere: no such artifact"),
        (["pack", "--row-tokens", "8"], 2, "no output; pass -o DIR"),
        (["verify"], 2, "usage: postmill verify"),
        (["inspect", "nowhere/"], 66, "nowhere: no such artifact"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(argv: list[str], code: int, line: str, tmp_path: Path) -> None:
    done = run(*argv, cwd=tmp_path)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
