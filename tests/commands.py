"""One command of ours in a process of its own, as people start it, to its end."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

MAIN = [sys.executable, "-P", "-m", "postmill.cli.main"]


def postmill(
    *argv: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Its exit code and what it printed. Nothing comes in by stdin; env: variables besides those of the tests."""
    return subprocess.run(
        [*MAIN, *map(str, argv)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
