"""The page docs/support.md: what people expect with the tests that prove it, and what each file of tests holds.

usage: python docs/support.py [REPORT.xml...]    reports of pytest --junitxml; those of several runs add up

A report's outcomes go into last_run.json, each file of tests with the date on which it ran; what no report has stays
as it was. Features are rows of features.toml. Sentences about files are those of the tests.
"""

import ast
import json
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

DOCS = Path(__file__).resolve().parent
TESTS = DOCS.parent / "tests"
PAGE = DOCS / "support.md"
RUNS = DOCS / "last_run.json"
BEGIN, END = "<!-- made by generate.py from here -->", "<!-- to here -->"
HEAD = f"""# What is there, and what holds it

Features that people of ms-swift, LLaMA-Factory, Axolotl, TRL, verl, prime-rl, NeMo-RL and Unsloth look for, each with
the tests that prove it; then every file of tests. `yes`: all of it is there. `part`: the row says what is not. Beside a
test stands its last run: `make test` runs the quick ones, `make test-slow` the others, and `python docs/support.py
REPORT.xml` reads reports of `pytest --junitxml`.

{BEGIN}
{END}

"""
Runs = dict[str, dict[str, Any]]
"""File of tests -> `date`, and `tests`: function -> outcome -> cases."""


def sentence(path: Path) -> str:
    """The first line of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".").replace("|", "\\|")


def results(report: Path) -> Runs:
    """What a report says. A case of a parametrized test counts for its function."""
    suites = ElementTree.parse(report)  # a file that pytest wrote here
    date = next((suite.get("timestamp", "") for suite in suites.iter("testsuite")), "")[:10]
    found: Runs = {}
    for case in suites.iter("testcase"):
        name = case.get("classname", "").replace(".", "/").removeprefix("tests/") + ".py"
        bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        tests = found.setdefault(name, {"date": date, "tests": {}})["tests"]
        function = case.get("name", "").partition("[")[0]
        tests.setdefault(function, Counter())[outcome] += 1
    return found


def known() -> Runs:
    """The last run of each file."""
    runs: Runs = json.loads(RUNS.read_text(encoding="utf-8")) if RUNS.exists() else {}
    return {name: run for name, run in runs.items() if (TESTS / name).exists()}


def joined(runs: Runs, new: Runs) -> Runs:
    """Newer outcomes over older ones, function by function: a report may hold a part of a file."""
    for name, run in new.items():
        old = runs.get(name, {"tests": {}})
        runs[name] = {"date": run["date"], "tests": old["tests"] | run["tests"]}
    return runs


def features() -> str:
    """The rows of features.toml as tables, with how their tests last went."""
    runs = known()
    said = tomllib.loads((DOCS / "features.toml").read_text(encoding="utf-8"))
    rows = [row for area in said.values() for row in area.values()]
    states = Counter(state(row) for row in rows)
    parts = [f"{states['yes']} of {len(rows)} are there, {states['part']} in part, {states['not yet']} not yet.\n"]
    for area, numbered in said.items():
        parts.append(f"\n## {area}\n\n| | feature | | proved by |\n|---|---|---|---|\n")
        for number, row in numbered.items():
            remark = row.get("remark", "")
            lacks = f" *{remark[0].upper()}{remark[1:]}.*" if remark else ""
            proofs = "<br>".join(_proof(test, runs) for test in row["tests"])
            parts.append(f"| {number} | {row['what']}.{lacks} | {state(row)} | {proofs} |\n".replace("  |", " |"))
    return "".join(parts)


def state(row: dict[str, Any]) -> str:
    """Whether a feature is there: nothing is that no test proves."""
    return "not yet" if not row["tests"] else "part" if row.get("remark") else "yes"


def _proof(test: str, runs: Runs) -> str:
    """A test by its name as words, linked to its file, with its last outcome."""
    file, _, function = test.partition("::")
    run = runs.get(file, {})
    counts = run.get("tests", {}).get(function, {})
    words = function.removeprefix("test_").replace("_", " ")
    return f"[{words}](../tests/{file}) ({_outcome(counts)})"


def _outcome(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "not run yet"


def page(runs: Runs) -> str:
    """The page with the part about files; generate.py fills in the features."""
    parts = [HEAD, "# Files of tests\n\n"]
    for folder in sorted({path.parent for path in TESTS.rglob("test_*.py")}):
        rows = []
        for path in sorted(folder.glob("test_*.py")):
            run = runs.get(path.relative_to(TESTS).as_posix(), {"date": "", "tests": {}})
            counts: Counter[str] = sum((Counter(one) for one in run["tests"].values()), Counter())
            shown = f"{_outcome(counts)}{', ' + run['date'] if run['date'] else ''}"
            rows.append(f"| {sentence(path)} | `{path.name}` | {shown} |\n")
        parts.append(f"## {folder.relative_to(TESTS).as_posix()}\n\n| holds | tests | last run |\n|---|---|---|\n")
        parts += [*rows, "\n"]
    made = "".join(parts).rstrip("\n") + "\n"
    return made.replace(f"{BEGIN}\n{END}", f"{BEGIN}\n{features()}{END}")


def main(reports: list[Path]) -> None:
    """Read reports, and write both files."""
    runs = known()
    for report in reports:
        runs = joined(runs, results(report))
    lines = [f"{json.dumps(name)}: {json.dumps(runs[name])}" for name in sorted(runs)]
    RUNS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    PAGE.write_text(page(runs), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}\n")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
