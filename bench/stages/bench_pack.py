"""How long does the whole pack stage take, file to file, and how much memory: ten million rows to an artifact?

TRL's `pack_dataset` is given fewer rows and writes packed tokens; the stage writes a plan and leaves tokens where they
are, so the two also do different amounts of writing. That is the point of a plan, and the note says it.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import Case, Rival

from postmill.io.arrays import from_numpy, list_of
from postmill.io.schemas import SPAN, TOKENS_V1

BATCH_ROWS = 16_384


def batches(num_rows: int) -> Iterator[pa.RecordBatch]:
    """Rows of 24 tokens in the median, up to 2048; the last half of each is trained on."""
    rng = np.random.default_rng(0)
    for at in range(0, num_rows, BATCH_ROWS):
        count = min(BATCH_ROWS, num_rows - at)
        lengths = np.clip(rng.lognormal(np.log(24), 0.9, count), 2, 2048).astype(np.int32)
        offsets = np.append(0, np.cumsum(lengths, dtype=np.int64))
        starts = lengths // 2
        columns = {
            "row_id": pa.Array.from_buffers(pa.binary(16), count, [None, pa.py_buffer(rng.bytes(16 * count))]),
            "source": from_numpy(np.zeros(count, np.int32), pa.int32()),
            "line": from_numpy(np.arange(at + 1, at + count + 1), pa.int64()),
            "input_ids": list_of(
                offsets, from_numpy(rng.integers(0, 150_000, offsets[-1], np.int32), pa.int32()), ids_type()
            ),
            "turns": list_of(np.zeros(count + 1, np.int32), pa.nulls(0, turn_type().value_type), turn_type()),
            "spans": list_of(np.arange(count + 1, dtype=np.int32), spans(starts, lengths), column_type("spans")),
            "length": from_numpy(lengths, pa.int32()),
            "trained_tokens": from_numpy(lengths - starts, pa.int32()),
            "weight_sum": from_numpy((lengths - starts).astype(np.float64), pa.float64()),
        }
        arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in TOKENS_V1]
        yield pa.RecordBatch.from_arrays(arrays, schema=TOKENS_V1)


def column_type(name: str) -> pa.DataType:
    return TOKENS_V1.field(name).type


def ids_type() -> pa.DataType:
    return column_type("input_ids")


def turn_type() -> Any:
    return column_type("turns")


def spans(starts: np.ndarray, ends: np.ndarray) -> pa.Array:
    weights = np.ones(len(starts), np.float32)
    children = [from_numpy(values, field.type) for values, field in zip((starts, ends, weights), SPAN, strict=True)]
    return pa.Array.from_buffers(SPAN, len(starts), [None], children=children)


def cases(smoke: bool) -> Iterator[Case]:
    from token_tables import write_tokens

    num_rows, num_trl = (5_000, 500) if smoke else (10_000_000, 50_000)
    with tempfile.TemporaryDirectory() as folder:
        tokens = write_tokens(Path(folder) / "tokens", batches(num_rows))
        packed = Path(folder) / "packed"
        argv = [
            sys.executable,
            "-m",
            "postmill.cli.main",
            "pack",
            tokens,
            "-o",
            packed,
            "--row-tokens",
            "4096",
            "--quiet",
        ]
        rivals = [
            Rival(
                "postmill pack",
                [str(arg) for arg in argv],
                num_rows,
                prepare=lambda: shutil.rmtree(packed, ignore_errors=True),
            )
        ]
        try:
            from datasets import Dataset, disable_progress_bars
            from trl import pack_dataset
        except ImportError:
            pass
        else:
            disable_progress_bars()
            ids = pa.concat_arrays([batch.column("input_ids") for batch in batches(num_trl)])
            rows = Dataset(pa.table({"input_ids": ids}))
            note = f"{num_trl:,} rows, 1000 a batch, tokens written; rate extrapolated"
            keep = {"keep_in_memory": True, "load_from_cache_file": False}
            rivals.append(Rival("trl pack_dataset", lambda: pack_dataset(rows, 4096, "bfd", keep), num_trl, note))

        def check() -> dict[str, Any]:
            """The bound of reliability: 300 MB and 16 bytes a row; looked at after the run, in `peak_mib`."""
            return {
                "bound_mib": round(300 + 16 * num_rows / 2**20),
                "tokens_mib": (tokens / "tokens.arrow").stat().st_size >> 20,
            }

        question = f"rows packed a second by the whole command, {num_rows:,} rows to bins of 4096"
        yield Case("whole stage", question, "rows/s", rivals, check, repeats=3, packages=("trl", "datasets", "pyarrow"))
