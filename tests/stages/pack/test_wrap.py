"""Packing that cuts rows where bins end: every token once, in order, with its weight, and TRL's own ids."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_tables import pair_id, row, to_batches, write_stream, write_tokens

from postmill.io.errors import ArtifactError
from postmill.io.ledger import read_ledger
from postmill.io.manifest import load_artifact, verify_files
from postmill.io.packed import PackedReader
from postmill.stages.pack.config import STAGE, Pack
from postmill.stages.pack.wrap import Wrapper
from postmill.stages.pack.wrapped import fill
from postmill.stages.runner import Options, run_stage

pytest.importorskip("postmill._native", reason="native module not built")


def wrapped(folder: Path, rows: list[dict[str, Any]], row_tokens: int) -> PackedReader:
    tokens = write_tokens(folder / "rows", to_batches(rows))
    cfg = Pack(row_tokens=row_tokens, strategy="wrapped")
    run_stage(STAGE, cfg, {"tokens": [str(tokens)]}, folder / "packed", Options())
    return PackedReader(folder / "packed")


def in_order(reader: PackedReader) -> list[list[int]]:
    """The ids of each bin, by the first of its rows: bins are visited in another order."""
    bins = sorted(range(len(reader)), key=lambda index: int(reader.rows(index)[0]))
    return [reader.bin(index).input_ids.tolist() for index in bins]


def turn(start: int, end: int, message: int, role: int = 2) -> dict[str, Any]:
    inner = {"generated_start": min(start + 1, end), "generated_end": end, "closing": max(end - 1, min(start + 1, end))}
    return {"start": start, "end": end, **inner, "role": role, "message": message, "loss": -1, "loss_scale": None}


_RUNS = (("start", "end"), ("generated_start", "generated_end"), ("closing", "generated_end"))


def marks(rows: list[dict[str, Any]]) -> tuple[dict[int, float], dict[tuple[int, str], int]]:
    """The weight of each token, and which message's it is by each mark of a turn. A token is known by its id."""
    weight: dict[int, float] = {}
    turned: dict[tuple[int, str], int] = {}
    for item in rows:
        ids = item["input_ids"]
        for span in item["spans"]:
            assert 0 <= span["start"] < span["end"] <= len(ids)
            weight |= dict.fromkeys(ids[span["start"] : span["end"]], span["weight"])
        for own in item["turns"]:
            places = [own[name] for name in ("start", "generated_start", "closing", "generated_end", "end")]
            assert places == sorted(places) and places[0] >= 0 and places[-1] <= len(ids)
            for name, end in _RUNS:
                turned |= dict.fromkeys(((token, name) for token in ids[own[name] : own[end]]), own["message"])
    return weight, turned


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_token_is_in_one_place_in_order_with_its_weight(data: st.DataObject) -> None:
    """Rows of all lengths in batches of all sizes, spans and turns anywhere."""
    row_tokens = data.draw(st.integers(1, 12))
    rows = []
    for number in range(data.draw(st.integers(1, 10))):
        length = data.draw(st.integers(1, 30))
        cuts = sorted(data.draw(st.sets(st.integers(0, length), max_size=6)))
        weights = data.draw(st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=3, max_size=3))
        spans = [(a, b, w) for a, b, w in zip(cuts[::2], cuts[1::2], weights, strict=False)]
        turns = [turn(a, b, i) for i, (a, b) in enumerate(itertools.pairwise(cuts))]
        rows.append(row([1000 * number + i for i in range(length)], spans, turns=turns))
    wrapper = Wrapper(row_tokens)
    batches = to_batches(rows, batch_rows=data.draw(st.integers(1, 5)))
    cut = [wrapper.cut(batch) for batch in batches]
    found = [piece for pieces, _ in cut for piece in pieces.to_pylist()]
    flat = [token for item in rows for token in item["input_ids"]]
    assert [token for piece in found for token in piece["input_ids"]] == flat
    # bins are full, but for the last
    starts = fill(np.array([piece["length"] for piece in found], np.uint32), row_tokens)
    sizes = [sum(piece["length"] for piece in found[a:b]) for a, b in itertools.pairwise(starts.tolist())]
    assert sizes == [row_tokens] * (len(flat) // row_tokens) + [len(flat) % row_tokens] * (len(flat) % row_tokens > 0)
    assert marks(found) == marks(rows)
    # what is counted: all targets but those that became the first token of a piece
    assert sum(piece["weight_sum"] for piece in found) + wrapper.cut_weight == sum(i["weight_sum"] for i in rows)
    assert sum(p["trained_tokens"] for p in found) + wrapper.cut_targets == sum(i["trained_tokens"] for i in rows)
    for piece in found:
        spans = [(s["start"], s["end"], s["weight"]) for s in piece["spans"]]
        expected = row(piece["input_ids"], spans)
        assert [piece[k] for k in ("trained_tokens", "weight_sum")] == [
            expected[k] for k in ("trained_tokens", "weight_sum")
        ]
    # where each piece came from
    identities = {
        number: identity
        for batch in batches
        for number, identity in zip(batch["line"].to_pylist(), batch["row_id"].to_pylist(), strict=True)
    }
    for piece in found:
        number, start = divmod(piece["input_ids"][0], 1000)
        assert (piece["line"], piece["piece_start"], piece["piece_of"]) == (number + 1, start, identities[number + 1])
        assert (piece["row_id"] == piece["piece_of"]) == (start == 0)
    assert len({piece["row_id"] for piece in found}) == len(found)
    continued = {piece["line"] for piece in found if piece["piece_start"]}
    assert [bool(c) for _, is_cut in cut for c in is_cut] == [n in continued for n in range(1, len(rows) + 1)]


def test_the_ledger_balances_and_bins_have_the_weights_that_the_plan_says(tmp_path: Path) -> None:
    rows = [
        row(range(10)),
        row(range(20, 24), []),  # nothing to train on
        row(range(30, 47), [(0, 9, 0.5), (9, 17, 2.0)]),
        row(range(50, 52)),
    ]
    reader = wrapped(tmp_path, rows, 8)
    assert in_order(reader) == [[*range(8)], [8, 9, *range(30, 36)], [*range(36, 44)], [44, 45, 46, 50, 51]]
    laid = [reader.bin(index) for index in range(len(reader))]
    assert [float(found.weights.sum()) for found in laid] == reader.plan.weight_sum.tolist()
    assert [int((found.weights != 0).sum()) for found in laid] == reader.plan.trained_tokens.tolist()
    lines = [(line["line"], line["action"], line["reason"]) for line in read_ledger(tmp_path / "packed").to_pylist()]
    assert sorted(lines) == [
        (1, "truncated", "wrapped"),
        (2, "dropped", "nothing_to_train"),
        (3, "truncated", "wrapped"),
    ]
    made = reader.artifact.manifest
    assert made.counts is not None and made.counts.is_balanced() and made.counts.rows_in == 4
    assert (made.metrics["cut_rows"], made.metrics["cut_targets"], made.metrics["cut_weight"]) == (
        2,
        3,
        1.0 + 0.5 + 2.0,
    )
    assert made.metrics["weight_sum"] + 3.5 == sum(item["weight_sum"] for item in rows)


@pytest.mark.slow  # importing TRL takes seconds
def test_the_ids_are_those_of_trl(tmp_path: Path) -> None:
    """TRL's `wrapped`, on the rows of the example in its documentation, and on others."""
    rng = np.random.default_rng(7)
    for number, (row_tokens, rows) in enumerate(
        [
            (4, [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10], [11]]),
            (5, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11]]),
            (64, [rng.integers(0, 9000, rng.integers(1, 300)).tolist() for _ in range(200)]),
        ]
    ):
        trained = [row(ids, [(0, len(ids), 1.0)]) for ids in rows]
        kept = [ids for ids in rows if len(ids) > 1]  # a row of one token has no target; TRL keeps it
        found = in_order(wrapped(tmp_path / str(number), trained, row_tokens))
        assert found == trl_wrapped(kept, row_tokens)


def trl_wrapped(rows: list[list[int]], row_tokens: int) -> list[list[int]]:
    datasets, data_utils = pytest.importorskip("datasets"), pytest.importorskip("trl.data_utils")
    packed = data_utils.pack_dataset(datasets.Dataset.from_dict({"input_ids": rows}), row_tokens, strategy="wrapped")
    ids: list[list[int]] = packed["input_ids"][:]
    return ids


def test_a_stream_and_two_artifacts_give_the_bins_of_one(tmp_path: Path) -> None:
    rows = [row([100 * n + i for i in range(3 + n)], turns=[turn(0, 3 + n, 0)]) for n in range(9)]
    whole = wrapped(tmp_path / "whole", rows, 7)
    write_tokens(tmp_path / "a", to_batches(rows[:4]))
    write_tokens(tmp_path / "b", to_batches(rows[4:]))
    cfg = Pack(row_tokens=7, strategy="wrapped")
    run_stage(STAGE, cfg, {"tokens": [str(tmp_path / "a"), str(tmp_path / "b")]}, tmp_path / "two", Options())
    with (tmp_path / "stream").open("wb") as sink:
        write_stream(sink, to_batches(rows))
    with (tmp_path / "stream").open("rb") as source:
        argv = ["pack", "-", "-o", str(tmp_path / "piped"), "--row-tokens", "7", "--strategy", "wrapped"]
        subprocess.run([sys.executable, "-m", "postmill.cli.main", *argv], stdin=source, check=True)
    for name in ("two", "piped"):
        reader = PackedReader(tmp_path / name)
        assert [reader.bin(i).input_ids.tolist() for i in range(len(reader))] == [
            whole.bin(i).input_ids.tolist() for i in range(len(whole))
        ]
        assert verify_files(load_artifact(tmp_path / name)) == []
        assert verify_files(load_artifact(tmp_path / name / "tokens")) == []


@pytest.mark.parametrize(
    ("columns", "what"),
    [({"label": 1.0}, "rows with a label"), ({"pair_id": pair_id("p"), "side": 0}, "the sides of a pair")],
    ids=["label", "pair"],
)
def test_rows_that_mean_something_only_whole_are_refused(tmp_path: Path, columns: dict[str, Any], what: str) -> None:
    with pytest.raises(ArtifactError, match=f"{what} cannot be cut; use best_fit") as refused:
        wrapped(tmp_path, [row([1, 2, 3, 4], **columns), row([1, 2, 3, 4], **columns)], 3)
    assert refused.value.code == 65
