"""How fast are ten million rows planned into bins, and how full are the bins, against the packers people use?

TRL packs within batches of 1000 rows by default; here its packer gets whole tables (its best case), with tokens of one
byte each, so that next to nothing of its time is moving tokens. It is given fewer rows, as many as take seconds, and
its rate per row is taken to hold for more: it is n log(bin length) by design. Plans are compared on the rows both got.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from harness import Case, Rival
from numpy.typing import NDArray
from texts import strings

from postmill import _native

BINS = (4096, 32768)


def log_normal(num_rows: int, longest: int) -> NDArray[np.uint32]:
    """Median 400 tokens, sigma 1: about what chat sets look like."""
    return np.clip(np.random.default_rng(0).lognormal(np.log(400), 1.0, num_rows), 1, longest).astype(np.uint32)


def chat_lengths() -> NDArray[np.uint32] | None:
    """Lengths in Qwen3 tokens of the chats in LLaMA-Factory's demo sets, in two languages, with tool calls."""
    import assets
    from tokenizers import Tokenizer

    tokenizer, data = assets.qwen3_tokenizer(), assets.llamafactory_data()
    if tokenizer is None or data is None:
        return None
    texts = []
    for name in ("alpaca_en_demo", "alpaca_zh_demo", "glaive_toolcall_en_demo", "glaive_toolcall_zh_demo"):
        [path] = data.rglob(f"{name}.json")
        texts += ["\n".join(strings(item)) for item in json.loads(path.read_text())]
    encoded = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode_batch_fast(texts)
    return np.array([len(item.ids) + 20 for item in encoded], np.uint32)


def token_table(lengths: NDArray[np.uint32]) -> Any:
    import pyarrow as pa

    offsets = np.append(0, np.cumsum(lengths, dtype=np.int64))
    values = pa.array(np.zeros(offsets[-1], np.int8))
    return pa.table({"input_ids": pa.LargeListArray.from_arrays(pa.array(offsets), values)})


def fill(lengths: NDArray[np.uint32], num_bins: int, capacity: int) -> float:
    return round(float(lengths.sum(dtype=np.int64)) / (num_bins * capacity), 6)


def case(name: str, lengths: NDArray[np.uint32], capacity: int, smoke: bool) -> Case:
    num_trl, num_binpacking = (300, 200) if smoke else (50_000, 2_000)
    rivals = [Rival("postmill", lambda: _native.pack_rows(lengths, None, capacity, "best_fit"), len(lengths))]
    facts: dict[str, Any] = {}
    some = lengths[:num_trl]
    try:
        from trl import data_utils
    except ImportError:
        data_utils = None
    if data_utils is not None:
        table = token_table(some)
        note = f"{num_trl:,} rows, global; rate extrapolated"
        rivals.append(Rival("trl _pack_bfd", lambda: data_utils._pack_bfd(table, capacity), num_trl, note))
    try:
        import binpacking
    except ImportError:
        pass
    else:
        few = [(i, int(n)) for i, n in enumerate(lengths[:num_binpacking])]
        note = f"{num_binpacking:,} rows; quadratic, so ms-swift gives it 1000 at a time"
        rivals.append(
            Rival(
                "binpacking (ms-swift)",
                lambda: binpacking.to_constant_volume(few, capacity, weight_pos=1),
                num_binpacking,
                note,
            )
        )

    def check() -> dict[str, Any]:
        starts, rows, over_long = _native.pack_rows(lengths, None, capacity, "best_fit")
        assert len(over_long) == 0
        assert (np.bincount(rows, minlength=len(lengths)) == 1).all()
        assert np.add.reduceat(lengths[rows].astype(np.int64), starts[:-1]).max() <= capacity
        facts["fill"] = fill(lengths, len(starts) - 1, capacity)
        starts, _, _ = _native.pack_rows(lengths, None, capacity, "in_order")
        facts["fill in_order"] = fill(lengths, len(starts) - 1, capacity)
        if data_utils is not None:
            theirs = data_utils._pack_bfd(table, capacity).num_rows
            ours = len(_native.pack_rows(some, None, capacity, "best_fit")[0]) - 1
            assert ours <= theirs, f"{ours} bins, TRL {theirs}"
            batches = [some[at : at + 1000] for at in range(0, len(some), 1000)]
            by_1000 = sum(len(_native.pack_rows(b, None, capacity, "best_fit")[0]) - 1 for b in batches)
            facts["bins of the rows TRL got"] = {
                "postmill": ours,
                "trl global": theirs,
                "trl default, 1000 a batch": by_1000,
            }
        return facts

    question = f"rows planned a second, best fit over all rows at once, bins of {capacity} tokens"
    return Case(name, question, "rows/s", rivals, check, packages=("trl", "pyarrow", "numpy", "binpacking"))


def deal_case(lengths: NDArray[np.uint32], num_ranks: int, bins_per_rank: int) -> Case:
    """Costs of real bins of 4096 tokens, as the stage computes them for hidden size 4096, in seeded order."""
    starts, rows, _ = _native.pack_rows(lengths, None, 4096, "best_fit")
    length = lengths[rows].astype(np.float64)
    costs = np.add.reduceat(length, starts[:-1]) + np.add.reduceat(length**2, starts[:-1]) / (6 * 4096)
    costs = costs[_native.bin_order(0, 0, len(costs))]

    def check() -> dict[str, Any]:
        slots, imbalance = _native.deal_bins(costs, num_ranks, bins_per_rank)
        assert (np.bincount(slots[slots >= 0], minlength=len(costs)) == 1).all()
        step = num_ranks * bins_per_rank
        whole = len(costs) // step
        turns = costs[: whole * step].reshape(whole, bins_per_rank, num_ranks).sum(axis=1)
        by_turns = turns.max(axis=1) / turns.mean(axis=1)
        return {
            "cost max/mean": {
                "mean": round(float(imbalance[:whole].mean()), 6),
                "worst": round(float(imbalance[:whole].max()), 6),
            },
            "taking turns": {"mean": round(float(by_turns.mean()), 6), "worst": round(float(by_turns.max()), 6)},
        }

    ours = Rival("postmill", lambda: _native.deal_bins(costs, num_ranks, bins_per_rank), len(costs))
    name = f"deal to {num_ranks} ranks x {bins_per_rank}"
    return Case(name, "bins dealt to ranks a second, and how even their costs are", "bins/s", [ours], check)


def cases(smoke: bool) -> Iterator[Case]:
    num_rows = 20_000 if smoke else 10_000_000
    for capacity in BINS:
        yield case(f"log-normal, {capacity}", log_normal(num_rows, capacity), capacity, smoke)
    chats = None if smoke else chat_lengths()
    if chats is not None:
        drawn = np.random.default_rng(1).choice(chats, num_rows)
        for capacity in BINS:
            yield case(f"chats, {capacity}", np.minimum(drawn, capacity).astype(np.uint32), capacity, smoke)
    some = log_normal(max(num_rows // 20, 20_000), 4096)
    for num_ranks, bins_per_rank in ((8, 1), (8, 4), (64, 4)):
        yield deal_case(some, num_ranks, bins_per_rank)
