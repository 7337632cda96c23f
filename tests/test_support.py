"""The page of what is there: features name tests that exist, files of tests say what they hold, reports are counted."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import support

ROOT = Path(__file__).resolve().parents[1]


def rows() -> dict[int, dict[str, Any]]:
    said = tomllib.loads((ROOT / "docs" / "features.toml").read_text())
    return {int(number): row for area in said.values() for number, row in area.items()}


def test_every_file_of_tests_says_what_it_holds() -> None:
    silent = [path.name for path in (ROOT / "tests").rglob("test_*.py") if not support.sentence(path)]
    assert not silent, f"{silent}: begin with a sentence that says what holds"


def test_every_feature_is_proved_or_said_to_be_missing() -> None:
    assert list(rows()) == list(range(1, 143))
    for number, row in rows().items():
        assert set(row) <= {"what", "tests", "remark"}, number
        assert row["tests"] or row["remark"], f"{number}: name a test, or say what is missing"
        for test in row["tests"]:
            file, _, function = test.partition("::")
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^(async )?def {function}\(", text, re.M), f"{number}: there is no {test}"


def test_a_feature_without_a_test_is_not_there() -> None:
    assert support.state({"tests": [], "remark": "x"}) == "not yet"
    assert support.state({"tests": ["a"], "remark": "x"}) == "part"
    assert support.state({"tests": ["a"]}) == "yes"


def test_reports_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = '<testsuites><testsuite timestamp="2026-01-0{}T10:00:00">'
    case = '<testcase classname="tests.test_support" name="{}">{}</testcase>'
    first, second = tmp_path / "1.xml", tmp_path / "2.xml"
    cases = (("a[1]", ""), ("a[2]", "<skipped/>"), ("b", "<failure/>"))
    first.write_text(head.format(1) + "".join(case.format(*one) for one in cases) + "</testsuite></testsuites>")
    second.write_text(head.format(2) + case.format("b", "") + "</testsuite></testsuites>")
    monkeypatch.setattr(support, "RUNS", tmp_path / "runs.json")
    monkeypatch.setattr(support, "PAGE", tmp_path / "page.md")
    support.main([first])
    page = support.PAGE.read_text()
    assert "| `test_support.py` | 1 failed, 1 passed, 1 skipped, 2026-01-01 |" in page
    assert page.count("| `test_") == len(list((ROOT / "tests").rglob("test_*.py")))
    support.main([second])
    assert "| `test_support.py` | 2 passed, 1 skipped, 2026-01-02 |" in support.PAGE.read_text()
    assert support.known()["test_support.py"]["tests"]["a"] == {"passed": 1, "skipped": 1}
