"""Packed artifacts read back: each bin against the rows it was made from."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
from token_tables import random_rows, row, to_batches, write_tokens

from postmill.io.errors import ArtifactError
from postmill.io.packed import BINS, PackedReader
from postmill.stages.pack.config import STAGE, Pack
from postmill.stages.runner import Options, run_stage

pytest.importorskip("postmill._native", reason="native module not built")


def pack(folder, rows, row_tokens=100, **config):
    tokens = write_tokens(folder / "tokens", to_batches(rows))
    run_stage(STAGE, Pack(row_tokens=row_tokens, **config), {"tokens": [str(tokens)]}, folder / "packed", Options())
    return folder / "packed"


def test_every_bin_equals_its_rows_laid_end_to_end(tmp_path):
    rows = random_rows(1, 123)
    reader = PackedReader(pack(tmp_path, rows))
    seen = []
    for index in range(len(reader)):
        found = reader.bin(index)
        parts = [rows[i] for i in found.rows.tolist()]
        seen += found.rows.tolist()
        assert found.input_ids.tolist() == [token for part in parts for token in part["input_ids"]]
        assert found.position_ids.tolist() == [i for part in parts for i in range(part["length"])]
        assert found.cu_seqlens.tolist() == np.cumsum([0] + [part["length"] for part in parts]).tolist()
        weights = []
        for part in parts:
            own = [0.0] * part["length"]
            for span in part["spans"]:
                own[span["start"] : span["end"]] = [span["weight"]] * (span["end"] - span["start"])
            weights += own
        assert found.weights.tolist() == weights
        assert [a.dtype for a in found] == [np.int32, np.int32, np.int32, np.float32, np.int64]
        assert reader.plan.length[index] == len(found.input_ids)
        assert reader.plan.trained_tokens[index] == np.count_nonzero(found.weights)
        assert reader.plan.weight_sum[index] == pytest.approx(found.weights.sum(dtype=np.float64))
        assert reader.plan.num_rows[index] == len(parts)
        squares = sum(part["length"] ** 2 for part in parts)
        assert reader.plan.cost[index] == pytest.approx(len(found.input_ids) + squares / (6 * 4096))
        assert reader.values(found.rows, "channel") == [part["channel"] for part in parts]
    assert sorted(seen) == list(range(123))
    assert reader.num_rows == 123


def test_first_token_of_a_row_is_never_a_target(tmp_path):
    """Pre-training text has weight on every token; the first has nothing before it, and must not cross the border."""
    rows = [row([1, 2, 3], [(0, 3, 2.0)]), row([4, 5], [(0, 1, 1.0), (1, 2, 0.5)])]
    reader = PackedReader(pack(tmp_path, rows))
    found = reader.bin(0)
    assert found.input_ids.tolist() == [1, 2, 3, 4, 5]
    assert found.weights.tolist() == [0.0, 2.0, 2.0, 0.0, 0.5]
    assert reader.plan.trained_tokens.tolist() == [3]
    assert reader.plan.weight_sum.tolist() == [4.5]


def test_order_depends_on_seed_and_epoch_and_deal_covers_it(tmp_path):
    reader = PackedReader(pack(tmp_path, random_rows(2, 300), seed=5))
    orders = [reader.order(epoch).tolist() for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(len(reader))) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert reader.order(1, seed=6).tolist() != orders[1]
    dealt = reader.deal(reader.order(1), 3, 2)
    assert dealt.shape == (-(-len(reader) // 6), 3, 2)
    for step, bins in enumerate(dealt):
        assert sorted(bins[bins >= 0].tolist()) == sorted(orders[1][6 * step : 6 * step + 6])


def test_in_order_keeps_its_order_in_every_epoch(tmp_path):
    reader = PackedReader(pack(tmp_path, random_rows(2, 50), strategy="in_order"))
    assert reader.order(3).tolist() == list(range(len(reader)))
    assert np.concatenate([reader.rows(i) for i in range(len(reader))]).tolist() == list(range(50))


def test_index_out_of_range(tmp_path):
    reader = PackedReader(pack(tmp_path, random_rows(3, 10)))
    for index in (-1, len(reader)):
        with pytest.raises(IndexError):
            reader.bin(index)


def test_tokens_are_found_beside_the_plan_after_both_were_moved(tmp_path):
    (tmp_path / "a").mkdir()
    pack(tmp_path / "a", random_rows(4, 20))
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(PackedReader(tmp_path / "b" / "packed").bin(0).rows) > 0
    (tmp_path / "b" / "tokens").rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError) as caught:
        PackedReader(tmp_path / "b" / "packed")
    assert caught.value.code == 66
    assert len(PackedReader(tmp_path / "b" / "packed", [tmp_path / "elsewhere"]).bin(0).rows) > 0


def test_other_tokens_are_refused(tmp_path):
    packed = pack(tmp_path, random_rows(4, 20))
    other = write_tokens(tmp_path / "other", to_batches(random_rows(5, 20)))
    shutil.rmtree(tmp_path / "tokens")
    shutil.copytree(other, tmp_path / "tokens")
    with pytest.raises(ArtifactError, match="was packed from") as caught:
        PackedReader(packed)
    assert caught.value.code == 78
    with pytest.raises(ArtifactError, match="2 tokens given, it was packed from 1"):
        PackedReader(packed, [other, other])


def test_without_run_json_it_asks_for_the_tokens(tmp_path):
    packed = pack(tmp_path, random_rows(4, 20))
    (packed / "run.json").unlink()
    with pytest.raises(ArtifactError, match="name the tokens artifacts") as caught:
        PackedReader(packed)
    assert caught.value.code == 66
    assert len(PackedReader(packed, [tmp_path / "tokens"])) > 0


@pytest.mark.parametrize("name", ["tokens/tokens.arrow", f"packed/{BINS}"])
def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path, name):
    """Every 97th byte of each file is flipped in turn: either an ArtifactError (65), or the same bins as before."""
    packed = pack(tmp_path, random_rows(6, 40))
    reader = PackedReader(packed)
    before = [[part.tobytes() for part in reader.bin(i)] for i in range(len(reader))]
    path = tmp_path / name
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            reader = PackedReader(packed)
            assert [[part.tobytes() for part in reader.bin(i)] for i in range(len(reader))] == before
        except ArtifactError as error:
            assert error.code in (65, 78), error
            refused += 1
    assert refused > 10


def test_a_plan_that_names_rows_its_tokens_lack_is_refused(tmp_path):
    packed = pack(tmp_path, random_rows(7, 30))
    table = pa.ipc.open_file(packed / BINS).read_all()
    beyond = pa.ListArray.from_arrays(
        table["rows"].combine_chunks().offsets, pa.array(table["rows"].combine_chunks().values.to_numpy() + 1)
    )
    table = table.set_column(0, table.schema.field(0), pa.array(beyond, table.schema.field(0).type))
    with pa.ipc.new_file(packed / BINS, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ArtifactError):
        reader = PackedReader(packed)
        for index in range(len(reader)):
            reader.bin(index)
