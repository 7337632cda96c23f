"""The page of what tests hold names every file of tests, and counts what a report says."""

import re
from pathlib import Path

import support

ROOT = Path(__file__).resolve().parents[1]


def test_every_file_of_tests_says_what_it_holds() -> None:
    silent = [path.name for path in (ROOT / "tests").rglob("test_*.py") if not support.sentence(path)]
    assert not silent, f"{silent}: begin with a sentence that says what holds"


def test_a_report_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "r.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_support" name="a"/>'
        '<testcase classname="tests.test_support" name="b"><skipped/></testcase>'
        '<testcase classname="tests.test_support" name="c"><failure/></testcase></testsuite></testsuites>'
    )
    page = support.page([report])
    assert re.search(r"\| `test_support.py` \| 1 failed, 1 passed, 1 skipped \|", page)
    assert page.count("| `test_") == len(list((ROOT / "tests").rglob("test_*.py")))
