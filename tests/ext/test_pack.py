"""The packing functions of the native module: laws on random lengths, a plain reference, and TRL's packer."""

import threading
from collections import deque
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

_native = pytest.importorskip("postmill._native", reason="native module not built")

LENGTHS = st.lists(st.integers(1, 70), max_size=200)
CAPACITIES = st.integers(1, 64)


def pack(lengths, capacity, strategy="best_fit", groups=None):
    groups = None if groups is None else np.array(groups, np.uint32)
    starts, rows, over_long = _native.pack_rows(np.array(lengths, np.uint32), groups, capacity, strategy)
    assert starts.dtype == rows.dtype == over_long.dtype == np.uint32
    bins = [rows[a:b].tolist() for a, b in pairwise(starts)]
    return bins, over_long.tolist()


def best_fit_reference(lengths, capacity):
    """By its definition: the least free space that fits, the longest waiting among equals, else a new bin."""
    order = sorted((i for i, n in enumerate(lengths) if n <= capacity), key=lambda i: -lengths[i])
    bins, queues = [], [deque() for _ in range(capacity + 1)]
    for i in order:
        free = next((f for f in range(lengths[i], capacity + 1) if queues[f]), None)
        if free is None:
            bins.append([])
            number, free = len(bins) - 1, capacity
        else:
            number = queues[free].popleft()
        bins[number].append(i)
        queues[free - lengths[i]].append(number)
    return bins


@settings(max_examples=1000, deadline=None)
@given(LENGTHS, CAPACITIES)
def test_best_fit_is_best_fit_decreasing(lengths, capacity):
    bins, over_long = pack(lengths, capacity)
    assert bins == best_fit_reference(lengths, capacity)
    assert over_long == [i for i, n in enumerate(lengths) if n > capacity]


@settings(max_examples=1000, deadline=None)
@given(LENGTHS, CAPACITIES, st.sampled_from(["best_fit", "in_order"]))
def test_each_row_once_and_no_bin_too_long(lengths, capacity, strategy):
    bins, over_long = pack(lengths, capacity, strategy)
    assert sorted(over_long + [i for b in bins for i in b]) == list(range(len(lengths)))
    assert all(b and sum(lengths[i] for i in b) <= capacity for b in bins)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=60), st.integers(20, 64))
def test_groups_stay_together(groups, capacity):
    lengths = [n for group in groups for n in group]
    offsets = np.cumsum([0] + [len(group) for group in groups]).tolist()
    for strategy in ("best_fit", "in_order"):
        bins, over_long = pack(lengths, capacity, strategy, offsets)
        alone, alone_long = pack([sum(group) for group in groups], capacity, strategy)
        assert bins == [[i for g in b for i in range(offsets[g], offsets[g + 1])] for b in alone]
        assert over_long == [i for g in alone_long for i in range(offsets[g], offsets[g + 1])]


@settings(max_examples=300, deadline=None)
@given(LENGTHS, CAPACITIES)
def test_in_order_is_next_fit(lengths, capacity):
    bins, _ = pack(lengths, capacity, "in_order")
    assert [i for b in bins for i in b] == [i for i, n in enumerate(lengths) if n <= capacity]
    for this, following in pairwise(bins):
        assert sum(lengths[i] for i in this) + lengths[following[0]] > capacity


def test_worked_examples_of_ms_swift():
    """Its binpack plan; the second tells the fullest-bin rule (binpacking up to 1.5) from the emptiest (2.0)."""
    assert pack([7, 6, 4, 3, 3], 10)[0] == [[0, 3], [1, 2], [4]]
    assert pack([6, 5, 3, 3], 10)[0] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("capacity", [512, 1000, 4096])
def test_no_more_bins_than_trl(capacity):
    """TRL packs over the whole table here, as its `map` with one batch would: the numbers of bins are equal."""
    data_utils = pytest.importorskip("trl.data_utils")
    import pyarrow as pa

    lengths = np.clip(np.random.default_rng(capacity).lognormal(5.5, 1.0, 4000), 1, capacity).astype(np.uint32)
    offsets = np.append(0, np.cumsum(lengths, dtype=np.int32)).astype(np.int32)
    table = pa.table({"input_ids": pa.ListArray.from_arrays(offsets, pa.array(np.zeros(offsets[-1], np.int8)))})
    assert len(pack(lengths, capacity)[0]) == data_utils._pack_bfd(table, capacity).num_rows


def test_same_plan_from_many_threads_at_once():
    lengths = np.random.default_rng(1).integers(1, 4096, 50_000).astype(np.uint32)
    expected = [part.tobytes() for part in _native.pack_rows(lengths, None, 4096, "best_fit")]
    plans = []

    def work():
        plans.append([part.tobytes() for part in _native.pack_rows(lengths, None, 4096, "best_fit")])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plans == [expected] * 8


def test_bad_arguments_are_named():
    for lengths, capacity, strategy, groups, words in [
        ([1], 0, "best_fit", None, "row_tokens: 0"),
        ([1], 2**24 + 1, "best_fit", None, "outside 1..16777216"),
        ([3, 0], 8, "best_fit", None, "row 1 has no tokens"),
        ([3, 3], 8, "best_fit", [0, 1], "from 0 to 2"),
        ([3, 3], 8, "in_order", [0, 0, 2], "offset 0"),
        ([3], 8, "worst_fit", None, "neither best_fit nor in_order"),
    ]:
        with pytest.raises(ValueError, match=words):
            pack(lengths, capacity, strategy, groups)
    with pytest.raises(TypeError):
        _native.pack_rows(np.array([1, 2], np.int64), None, 8, "best_fit")


def splitmix64(x: int) -> int:
    mask = 2**64 - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_bin_order_is_the_documented_function(seed, epoch, num_bins):
    base = splitmix64(splitmix64(seed) ^ epoch)
    expected = sorted(range(num_bins), key=lambda i: (splitmix64(base ^ i), i))
    assert _native.bin_order(seed, epoch, num_bins).tolist() == expected


def test_bin_order_is_even():
    """Over 2,000 epochs bin 0 of 10 comes first about as often as any other: chi-squared, 9 degrees, p = 0.001."""
    first = np.bincount([_native.bin_order(3, epoch, 10)[0] for epoch in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 27.9


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0, 1e6), max_size=80), st.integers(1, 6), st.integers(1, 6))
def test_deal_gives_each_bin_once_inside_its_step(costs, num_ranks, each):
    slots, imbalance = _native.deal_bins(np.array(costs, np.float64), num_ranks, each)
    steps = slots.reshape(-1, num_ranks, each)
    assert len(steps) == len(imbalance) == -(-len(costs) // (num_ranks * each))
    for number, step in enumerate(steps):
        dealt = sorted(step[step >= 0].tolist())
        first = number * num_ranks * each
        assert dealt == list(range(first, min(first + num_ranks * each, len(costs))))
        loads = np.array([sum(costs[i] for i in hand if i >= 0) for hand in step])
        if loads.mean() > 0:
            assert imbalance[number] == pytest.approx(loads.max() / loads.mean(), rel=1e-9)
        counts = (step >= 0).sum(axis=1)
        assert counts.max() - counts.min() <= 1 or len(dealt) < num_ranks * each


def test_deal_is_no_worse_than_longest_first_and_near_the_optimum():
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(200):
        costs = rng.uniform(1, 3, 8)
        _, imbalance = _native.deal_bins(costs, 2, 4)
        best = min(max(costs[list(c)].sum(), costs.sum() - costs[list(c)].sum()) for c in combinations(range(8), 4))
        ratios.append(imbalance[0] / (best / (costs.sum() / 2)))
    assert min(ratios) > 1 - 1e-9
    assert max(ratios) < 1.05
    assert np.mean(ratios) < 1.01


def test_deal_refuses_costs_it_cannot_add():
    for costs in ([np.nan], [np.inf], [-1.0]):
        with pytest.raises(ValueError, match="bin 0 costs"):
            _native.deal_bins(np.array(costs), 1, 1)
    with pytest.raises(ValueError, match="at least 1"):
        _native.deal_bins(np.array([1.0]), 0, 1)
