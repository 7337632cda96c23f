"""Paired statistics against formulas written out, and `postmill evaldiff` on artifacts."""

import json
import math
from pathlib import Path

import commands
import numpy as np
import pytest

pytest.importorskip("torch", reason="the evals compared are made here")
pytest.importorskip("transformers")

from tiny_chat import write_chat_model

from postmill.stages.eval.config import STAGE, Eval
from postmill.stages.eval.paired import compare, holm, mcnemar
from postmill.stages.options import make
from postmill.stages.runner import Options, run_stage


def verdicts(count, share, seed=3):
    """Right and wrong answers, the same for the same seed."""
    return (np.random.default_rng([seed, int(100 * share)]).random(count) < share).astype(float)


def test_equals_differ_by_nothing():
    values = verdicts(50, 0.5)
    found = compare("acc", values, values, [""] * 50, 1)
    assert (found.difference, found.low, found.high, found.p, found.stderr) == (0, 0, 0, 1, 0)
    assert (found.gained, found.lost) == (0, 0)


def test_a_standard_error_is_of_the_differences_and_of_clusters():
    before, after = verdicts(60, 0.4), verdicts(60, 0.6)
    change = after - before
    found = compare("acc", before, after, [""] * 60, 1)
    assert found.stderr == pytest.approx(change.std(ddof=1) / math.sqrt(60))
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * found.stderr, rel=1e-5)
    clusters = [str(number % 6) for number in range(60)]
    sums = [(change - change.mean())[number::6].sum() for number in range(6)]
    expected = math.sqrt(sum(value**2 for value in sums)) / 60 * math.sqrt(6 / 5)
    assert compare("acc", before, after, clusters, 1).stderr == pytest.approx(expected)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 experiments with a true difference of 0.2: 95% of the intervals hold it."""
    hits = 0
    for number in range(200):
        before, after = verdicts(80, 0.4, number), verdicts(80, 0.6, number)
        found = compare("acc", before, after, [""] * 80, number)
        hits += found.low <= 0.2 <= found.high
    assert 178 <= hits <= 199


def test_the_interval_is_symmetric_and_repeats():
    before, after = verdicts(70, 0.5), verdicts(70, 0.7)
    one, again = (compare("acc", before, after, [""] * 70, 9) for _ in range(2))
    assert one == again
    other = compare("acc", after, before, [""] * 70, 9)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=0.03)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 3), (9, 2), (1, 12)])
def test_mcnemar_is_the_exact_binomial(gained, lost):
    count = gained + lost
    shares = [math.comb(count, k) / 2**count for k in range(count + 1)]
    expected = sum(share for share in shares if share <= shares[min(gained, lost)] * (1 + 1e-12))
    assert mcnemar(gained, lost) == pytest.approx(min(expected, 1.0))


def test_holm_holds_for_all_together():
    found = [
        compare(str(n), np.zeros(40), np.repeat([1.0, 0.0], [k, 40 - k]), [""] * 40, 0) for n, k in enumerate((9, 6, 5))
    ]
    ps = [each.p for each in found]
    assert [each.p_holm for each in holm(found)] == pytest.approx([3 * ps[0], 2 * ps[1], max(2 * ps[1], ps[2])])


def evaldiff(*argv):
    return commands.postmill("evaldiff", *argv)


@pytest.fixture(scope="module")
def evals(tmp_path_factory):
    """Two evals of the same rows by two models, and one that asks in other words."""
    folder = tmp_path_factory.mktemp("evaldiff")
    rows = [{"question": f"{n}?", "choices": {"text": ["a", "bc"], "label": ["A", "B"]}} for n in range(12)]
    lines = [json.dumps(row | {"answerKey": "AB"[n % 2]}) for n, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    for name, options in (("one", {}), ("two", {"initializer_range": 0.5}), ("other", {})):
        write_chat_model(folder / f"{name}-model", longest=512, **options)
        data = [f"{split}={folder / 'rows.jsonl'}" for split in ("test", "train")]
        given = {"tested": [str(folder / f"{name}-model")], "data": data}
        cfg = make(Eval, task="arc_easy", fewshot=1 if name == "other" else 0)
        run_stage(STAGE, cfg, given, folder / name, Options(threads=1))
    return folder


def test_two_evals_are_compared_as_a_command(evals: Path):
    same = evaldiff(evals / "one", evals / "one", "--json", "--fail-drop", "0")
    assert same.returncode == 0, same.stderr
    for each in json.loads(same.stdout)["differences"]:
        assert (each["difference"], each["low"], each["high"], each["p"], each["num_items"]) == (0, 0, 0, 1, 12)
    done = evaldiff(evals / "one", evals / "two")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3
    refused = evaldiff(evals / "one", evals / "other")
    assert refused.returncode == 78 and "asked in other words" in refused.stderr
    assert evaldiff(evals / "one", evals / "other", "--across-prompts").returncode == 0
    assert evaldiff(evals / "one", evals / "two", "--fail-drop", "much").returncode == 2
    assert evaldiff(evals / "one").returncode == 2
