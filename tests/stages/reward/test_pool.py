"""Workers of reward functions: rows that have to be ended leave no process behind, and cost their own time alone."""

import os
import time
from pathlib import Path

import pytest

from postmill.stages.reward.pool import Pool
from postmill.stages.reward.row import Row

FUNCTION = """
import os, time
def slow(row):
    time.sleep(row.columns["seconds"])
    if row.columns.get("dies"):
        os._exit(1)
    return float("nan") if row.columns.get("lost") else 1.0
"""


@pytest.fixture
def function(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION)
    return f"{tmp_path / 'mine.py'}:slow"


def rows(number, **columns):
    given = {"output": "", "messages": [], "transcript": [], "finish": "stop", "num_tokens": 1, "sample": 0, "seed": 0}
    return [Row(**given, columns=columns)] * number


def below(pid):
    """Processes that descend from `pid`, with their states."""
    parents, states = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        parents[int(path.parent.name)], states[int(path.parent.name)] = int(parent), state
    found, more = set(), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return {child: states[child] for child in found}


def check_timeouts(function, number, limit_s, num_workers):
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    before = below(os.getpid()).keys()
    with Pool(num_workers, time_limit_s=limit_s, memory_mb=2048) as pool:
        answers = dict(pool.run(function, {}, rows(number, seconds=600)))
        assert {answer.reason for answer in answers.values()} == {"timeout"} and len(answers) == number
        # the nursery, and a keeper and a worker each; one that has just ended may not be reaped yet
        assert len(below(os.getpid()).keys() - before) <= 1 + 2 * num_workers
    assert below(os.getpid()).keys() <= before
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_time_outs_leave_no_process_and_no_descriptor(function):
    check_timeouts(function, 30, 0.02, 3)


@pytest.mark.slow
def test_ten_thousand_time_outs_leave_no_process_and_no_descriptor(function):
    check_timeouts(function, 10_000, 0.02, 8)


@pytest.mark.slow
def test_bad_rows_cost_their_share_of_the_time(function):
    """Of rows of 20 ms 1% end their process, hang until they are ended, or have no number."""
    limit_s, num_workers = 0.2, 2

    def seconds(given):
        started = time.monotonic()
        with Pool(num_workers, time_limit_s=limit_s, memory_mb=2048) as pool:
            answers = dict(pool.run(function, {}, given))
        return time.monotonic() - started, sum(answer.score is None for answer in answers.values())

    plain = rows(3000, seconds=0.02)
    bad = [*rows(10, seconds=0.02, dies=True), *rows(10, seconds=600), *rows(10, seconds=0.02, lost=True)]
    mixed = [bad[number // 100] if number % 100 == 0 else row for number, row in enumerate(plain)]
    (calm, none), (busy, lost) = seconds(plain), seconds(mixed)
    assert (none, lost) == (0, 30)
    waited = 10 * limit_s / num_workers  # what the caller chose to wait for a row
    assert busy - waited < 1.02 * calm
