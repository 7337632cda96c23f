"""Learning rates against values worked out by hand. No torch."""

import pytest

from postmill.stages.options import make
from postmill.stages.train.config import STAGE, Train
from postmill.stages.train.schedules import SCHEDULES, warmup_steps


def rates(num_steps, **options):
    cfg = make(Train, lr=1.0, **options)
    return [cfg.lr_at(step, num_steps) for step in range(num_steps)]


def test_linear_with_warm_up():
    assert rates(10, schedule="linear", warmup=2) == pytest.approx(
        [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    )


def test_cosine_is_half_way_down_in_the_middle():
    got = rates(8, schedule="cosine", warmup=0, min_lr=0.1)
    assert got[0] == 1.0
    assert got[4] == pytest.approx(0.55)
    assert got == sorted(got, reverse=True)
    assert make(Train, lr=1.0, warmup=0, min_lr=0.1).lr_at(8, 8) == pytest.approx(0.1)


def test_constant_and_wsd():
    assert rates(4, schedule="constant", warmup=0) == [1.0] * 4
    assert rates(10, schedule="wsd", warmup=1, decay=0.4) == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


OPTIONS = {
    "wsd": {"decay": 0.25},
    "wsd sqrt": {"decay": 0.25, "shape": "sqrt"},
    "polynomial": {"power": 3.0},
    "cosine-restarts": {"cycles": 3},
}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", *OPTIONS])
def test_schedules_are_transformers_own(schedule):
    """After warm-up the rates are those of transformers' schedulers; its warm-up begins at 0, ours reaches the peak."""
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")
    steps, warmup = 40, 4
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    make = {
        "cosine": lambda: optimization.get_cosine_schedule_with_warmup(optimizer, warmup, steps),
        "linear": lambda: optimization.get_linear_schedule_with_warmup(optimizer, warmup, steps),
        "constant": lambda: optimization.get_constant_schedule_with_warmup(optimizer, warmup),
        "wsd": lambda: optimization.get_wsd_schedule(
            optimizer, warmup, num_decay_steps=10, num_training_steps=steps, decay_type="linear"
        ),
        "wsd sqrt": lambda: optimization.get_wsd_schedule(
            optimizer, warmup, num_decay_steps=10, num_training_steps=steps, decay_type="1-sqrt"
        ),
        "polynomial": lambda: optimization.get_polynomial_decay_schedule_with_warmup(
            optimizer, warmup, steps, lr_end=0.0, power=3.0
        ),
        "cosine-restarts": lambda: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizer, warmup, steps, num_cycles=3
        ),
    }[schedule]
    scheduler, theirs = make(), []
    for _ in range(steps):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = rates(steps, schedule=schedule.partition(" ")[0], warmup=warmup, **OPTIONS.get(schedule, {}))
    assert ours[warmup:] == pytest.approx(theirs[warmup:])
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1])


def test_warm_up_is_a_share_or_a_number():
    assert warmup_steps(0.03, 100) == 3
    assert warmup_steps(0.03, 10) == 1
    assert warmup_steps(5, 100) == 5
    assert rates(3, warmup=9) == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_every_rate_is_above_zero_and_at_most_the_peak():
    for schedule in SCHEDULES.table:
        for warmup in (0, 0.03, 0.99, 1, 7):
            for num_steps in (1, 2, 13):
                got = rates(num_steps, schedule=schedule, warmup=warmup)
                assert all(0 < rate <= 1 + 1e-12 for rate in got), (schedule, warmup, num_steps)


def test_default_rate_follows_the_tuner():
    assert Train().peak_lr == 1e-4
    assert make(Train, tuner="full").peak_lr == 1e-5


def test_rules_between_options():
    with pytest.raises(ValueError, match="micro_bins 3 does not divide bins_per_step 8"):
        make(Train, micro_bins=3)
    with pytest.raises(ValueError, match="keep_best needs valid_every"):
        make(Train, keep_best=1)
    with pytest.raises(ValueError, match=r"min_lr 0\.1 and schedule constant"):
        make(Train, min_lr=0.1, schedule="constant")


def test_what_is_made_follows_the_tuner():
    assert (STAGE.kind(Train()), STAGE.kind(make(Train, tuner="full"))) == ("adapter", "model")
