"""Rows in the order of how sure a model was of them: a curriculum."""

import numpy as np
import pyarrow as pa
import pytest
from token_tables import pair_id, row, to_batches, write_tokens

from postmill.io.errors import ArtifactError, ConfigError
from postmill.io.manifest import MANIFEST, Manifest, list_files
from postmill.io.packed import PackedReader
from postmill.io.schemas import SCORES_V1
from postmill.io.scores import SCORES, ScoresReader
from postmill.io.table import TableWriter
from postmill.stages.pack.config import STAGE, Pack
from postmill.stages.runner import Options, run_stage

pytest.importorskip("postmill._native", reason="native module not built")


def write_scores(path, rows, nats):
    """A scores artifact that says so many nats of each token of a row; none of a row with None."""
    ids = [line["row_id"] for batch in to_batches(rows) for line in batch.to_pylist()]
    path.mkdir()
    columns = {
        "row_id": pa.array(ids, SCORES_V1.field("row_id").type),
        "start": pa.array([1] * len(rows), pa.int32()),
        "logp": pa.array([[] if n is None else [-n - 0.5, -n + 0.5] for n in nats], SCORES_V1.field("logp").type),
    }
    columns |= {field.name: pa.nulls(len(rows), field.type) for field in SCORES_V1 if field.name not in columns}
    writer = TableWriter(path / SCORES, SCORES_V1)
    writer.write(pa.RecordBatch.from_arrays([columns[field.name] for field in SCORES_V1], schema=SCORES_V1))
    writer.close()
    made = Manifest(kind="scores", stage="score", stage_version=1, key="blake3:test", config={}, files=list_files(path))
    (path / MANIFEST).write_bytes(made.to_json())
    return path


def pack(folder, rows, nats=None, name="packed", **options):
    tokens = folder / "tokens"
    if not tokens.exists():
        write_tokens(tokens, to_batches(rows))
    ports = {"tokens": [str(tokens)]}
    if nats is not None:
        ports["scores"] = [str(write_scores(folder / f"{name}-scores", rows, nats))]
    run_stage(STAGE, Pack(row_tokens=30, **options), ports, folder / name, Options())
    return PackedReader(folder / name)


def visited(reader):
    return np.concatenate([reader.bin(number).rows for number in reader.order(3, 7)]).tolist()


def test_easy_rows_come_first_and_unscored_ones_last(tmp_path):
    rows = [row(range(8)) for _ in range(6)]
    nats = [3.0, None, 1.0, 2.0, 0.5, 4.0]
    easy = pack(tmp_path, rows, nats, "easy", strategy="in_order", order="easy-first")
    assert visited(easy) == [4, 2, 3, 0, 5, 1]
    hard = pack(tmp_path, rows, nats, "hard", strategy="in_order", order="hard-first")
    assert visited(hard) == [5, 0, 3, 2, 4, 1]
    np.testing.assert_allclose(ScoresReader(tmp_path / "easy-scores").nats(), [3, np.nan, 1, 2, 0.5, 4])


def test_pairs_stay_together_and_dropped_rows_are_no_gap(tmp_path):
    rows = [
        row(range(8), pair_id=pair_id("a"), side=0),
        row(range(9), pair_id=pair_id("a"), side=1),
        row(range(6), pair_id=pair_id("b"), side=0),
        row(range(7), pair_id=pair_id("b"), side=1),
        row(range(8), pair_id=pair_id("c"), side=0),
        row(range(9), pair_id=pair_id("c"), side=1),
    ]
    packed = pack(tmp_path, rows, [5, 1, 1, 1, 0, 5], strategy="in_order", order="easy-first")
    assert visited(packed) == [2, 3, 4, 5, 0, 1]


def test_long_rows_are_dropped_by_their_own_number(tmp_path):
    rows = [row(range(8)), row(range(40)), row(range(7))]
    packed = pack(tmp_path, rows, [2, 0, 1], strategy="in_order", order="easy-first", on_long="drop")
    assert visited(packed) == [2, 0]


def test_what_does_not_go_together_is_refused(tmp_path):
    rows = [row(range(8)), row(range(7))]
    with pytest.raises(ValueError, match="order easy-first and strategy best_fit"):
        Pack(row_tokens=30, order="easy-first")
    with pytest.raises(ConfigError, match="--order hard-first: needs --scores"):
        pack(tmp_path, rows, strategy="in_order", order="hard-first")
    with pytest.raises(ConfigError, match="--scores: only --order"):
        pack(tmp_path, rows, [1, 2], name="other")
    scores = write_scores(tmp_path / "wrong", rows[:1], [1])
    ports = {"tokens": [str(tmp_path / "tokens")], "scores": [str(scores)]}
    with pytest.raises(ArtifactError, match="not of these rows") as error:
        run_stage(STAGE, Pack(row_tokens=30, strategy="in_order", order="easy-first"), ports, tmp_path / "w", Options())
    assert error.value.code == 78
