"""Programs in answers: what they score on assertions and on input and output, whatever they do."""

import json

import pytest
from rollouts_table import row_of, write_rollouts

from postmill.io.manifest import load_artifact
from postmill.io.rollouts import REWARDS
from postmill.io.schemas import REWARDS_V1
from postmill.io.table import TableReader
from postmill.stages.options import make
from postmill.stages.reward.code import program_of, read_tests
from postmill.stages.reward.config import STAGE, Reward
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.sandbox.run import missing

needs_sandbox = pytest.mark.skipif(bool(missing("strong")), reason=f"no strong sandbox: {missing('strong')}")
ASSERTS = ["assert double(2) == 4", "assert double(0) == 0"]
PIPED = [{"input": "2\n", "output": "4"}, {"input": "5\n", "output": "10\n"}]
DOUBLE = "def double(n):\n    return 2 * n\n"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```\nor better\n```py\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nOutput:\n```json\n{}\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("<think>```python\nx = 3\n```</think>x = 1", "x = 1"),
    ],
)
def test_the_program_of_an_answer(text, program):
    assert program_of(text) == program


def test_forms_of_tests():
    assert [test.assertions for test in read_tests(ASSERTS)] == ASSERTS
    assert [test.assertions for test in read_tests("assert 1")] == ["assert 1"]
    assert read_tests(PIPED) == read_tests({"inputs": ["2\n", "5\n"], "outputs": ["4", "10\n"]})
    for wrong in ("", [], [1], {"inputs": ["1"], "outputs": []}, 3):
        with pytest.raises(ValueError, match="expected assertions, or inputs with outputs"):
            read_tests(wrong)


def scores(folder, rows, **options):
    """Score and reason of each row."""
    write_rollouts(folder / "rollouts", rows)
    given = {"rollouts": [str(folder / "rollouts")], "functions": ["code"]}
    cfg = make(Reward, advantage="none", max_failed=1.0, **options)
    run_stage(STAGE, cfg, given, folder / "rewards", Options(threads=1))
    lines = [line for batch in TableReader(folder / "rewards" / REWARDS, REWARDS_V1) for line in batch.to_pylist()]
    return [(line["scores"][0], line["errors"][0]["reason"] if line["errors"] else "") for line in lines]


@needs_sandbox
def test_programs_score_what_they_pass(tmp_path):
    piped = f"{DOUBLE}print(double(int(input())))\n"
    cases = [
        (DOUBLE, ASSERTS, 1.0),
        ("def double(n):\n    return 4\n", ASSERTS, 0.0),
        ("def double(n):\n    return 2 * n\nexit(0)", ASSERTS, 0.0),
        ("import os\nos.kill(os.getpid(), 11)", ASSERTS, 0.0),
        ("not python", ASSERTS, 0.0),
        (piped, PIPED, 1.0),
        ("print(4)", PIPED, 0.0),
        ("while True: pass", PIPED, 0.0),
        (DOUBLE, None, None),
    ]
    rows = [
        row_of(number, 0, f"```python\n{program}\n```", **({"tests": tests} if tests else {}))
        for number, (program, tests, _) in enumerate(cases)
    ]
    assert scores(tmp_path, rows, test_limit_s=1.0) == [(score, "") for *_, score in cases]
    assert load_artifact(tmp_path / "rewards").manifest.metrics["functions"][0]["failed"] == {}


@needs_sandbox
def test_a_share_of_tests_and_a_row_whose_tests_are_none(tmp_path):
    half = "def double(n):\n    return 4\n"
    rows = [row_of(0, 0, half, tests=ASSERTS), row_of(1, 0, half, tests=[1, 2])]
    assert scores(tmp_path, rows, credit="share") == [(0.5, ""), (None, "raised")]


def test_options_are_in_the_manifest_under_their_group():
    assert json.loads(json.dumps(make(Reward, credit="share").code.credit)) == "share"
