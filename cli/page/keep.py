"""The process that a run of the page is a child of: it outlives page and server, and writes down how the run ended.

usage: python -m postmill.cli.page.keep FILE COMMAND...    (the exit code goes into FILE)
"""

import sys
from pathlib import Path

from postmill.cli.child import run_child


def main() -> None:
    """Run the command to its end; SIGTERM is passed on to it."""
    target = Path(sys.argv[1])
    code = run_child(sys.argv[2:]).code
    beside = target.with_name(f".{target.name}")
    beside.write_text(f"{code}\n")
    beside.replace(target)


if __name__ == "__main__":
    main()
