"""Writes docs/support.md: what each file of tests holds, and how its last run went.

usage: python tests/support.py [REPORT.xml...]    reports of pytest --junitxml; without any, only what is held

Nothing in the page is written by hand: the sentences are those of the tests, the counts those of the reports.
"""

import ast
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "support.md"
HEAD = """# What is held by tests

Made by `python tests/support.py REPORT.xml`, where the report is that of `pytest --junitxml`. A row is a file of
tests: what it holds, in its own words, and how many passed, were skipped (no GPU, no asset) or failed in the reports.

"""


def sentence(path: Path) -> str:
    """The first line of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".").replace("|", "\\|")


def results(reports: list[Path]) -> dict[str, Counter[str]]:
    """File of tests -> outcomes."""
    found: dict[str, Counter[str]] = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):  # a file that pytest wrote here
            name = case.get("classname", "").replace(".", "/") + ".py"
            bad = case.find("failure") is not None or case.find("error") is not None
            outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
            found.setdefault(name, Counter())[outcome] += 1
    return found


def page(reports: list[Path]) -> str:
    """The whole page."""
    seen = results(reports)
    parts = [HEAD]
    folders = sorted({path.parent for path in (ROOT / "tests").rglob("test_*.py")})
    for folder in folders:
        rows = []
        for path in sorted(folder.glob("test_*.py")):
            name = path.relative_to(ROOT).as_posix()
            counts = seen.get(name, Counter())
            shown = (
                ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "not in the reports"
            )
            rows.append(f"| {sentence(path)} | `{path.name}` | {shown} |\n")
        parts.append(
            f"## {folder.relative_to(ROOT / 'tests').as_posix()}\n\n| holds | tests | last run |\n|---|---|---|\n"
        )
        parts += [*rows, "\n"]
    return "".join(parts).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page([Path(word) for word in sys.argv[1:]]), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
