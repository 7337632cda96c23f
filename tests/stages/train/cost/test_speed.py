"""The model of speed against published runs: what it says, how far off it is, and where it is wrong."""

import math

import pytest
from published_speeds import LLAMA_8, PUBLISHED, leave_one_out, plan

from postmill.stages.train.cost.machines import KINDS
from postmill.stages.train.cost.speed import step_speed

UNEXPLAINED = "30B-A3B Megatron"
"""6% of the GPUs' peak; nothing in the published settings says why."""


def ratio(row):
    _, what, published, kind, model, layout = row
    return getattr(step_speed(model, KINDS[kind], layout), what) / published


def test_published_runs_are_met_within_a_fifth():
    off = {row[0]: abs(math.log(ratio(row))) for row in PUBLISHED}
    assert math.exp(sorted(off.values())[len(off) // 2]) < 1.08
    assert [name for name, one in off.items() if one > math.log(1.21)] == [UNEXPLAINED]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (plan(8, 16, 8192, sharded=True), plan(8, 16, 8192, sharded=True, checkpointing=True)),
        (plan(8, 16, 8192, tp=2), plan(8, 16, 8192, tp=8)),
        (plan(64, 64, 8192, pp=4, stages=4), plan(64, 64, 8192, pp=4)),
    ],
)
def test_what_costs_more_takes_longer(better, worse):
    kind = KINDS["h100"]
    assert step_speed(LLAMA_8, kind, better).seconds < step_speed(LLAMA_8, kind, worse).seconds


@pytest.mark.slow
def test_rows_that_were_left_out_are_met_within_15_percent():
    """All constants fitted anew on the other rows, from round numbers: what the model says of a run it has not seen."""
    off = sorted(abs(math.log(ratio)) for _, ratio in leave_one_out())
    assert math.exp(off[len(off) // 2]) < 1.15
