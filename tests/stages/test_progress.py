"""What people see of work under way and of its end."""

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from postmill.io.manifest import Counts
from postmill.stages import progress
from postmill.stages.progress import Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_meter_tells_share_rate_and_time_left(clock: list[float]) -> None:
    meter = Meter(1210, 10)
    assert meter.of(10, "rows") == "0%, 10 of 1,210 rows"
    clock[0] += 8
    assert meter.of(410, "rows") == "33%, 410 of 1,210 rows, 50 rows/s, 16 s left"
    assert meter.of(1210, "rows") == "100%, 1,210 of 1,210 rows, 150 rows/s"
    clock[0] += 1000
    assert meter.of(1209, "layers").endswith("1.2 layers/s, 0.8 s left")


def test_the_end_of_a_stage_in_a_line() -> None:
    assert Counts(rows_in=1200, kept=1200).describe() == "1,200 rows in: 1,200 kept"
    counts = Counts(rows_in=20, kept=13, truncated=3, masked=2, dropped={"too_long": 3, "empty": 1})
    assert counts.describe() == "20 rows in: 13 kept, 3 truncated, 4 dropped (1 empty, 3 too_long), 2 masked"


def test_the_share_of_files_read_grows_to_one(tmp_path: Path) -> None:
    """Whatever the format: by bytes on disk, over all files and all times they are read."""
    pytest.importorskip("postmill._native", reason="native module not built")
    from postmill.stages.tokenize.sources import open_sources

    texts = [f"some words {n} " * 9 for n in range(4000)]
    lines = b"".join(b'{"text": "%s"}\n' % text.encode() for text in texts)
    for name, pack in {"a.jsonl": bytes, "b.jsonl.gz": gzip.compress, "c.jsonl.bz2": bz2.compress}.items():
        (tmp_path / name).write_bytes(pack(lines))
    (tmp_path / "d.jsonl.xz").write_bytes(lzma.compress(lines))
    with pa.CompressedOutputStream(str(tmp_path / "e.jsonl.zst"), "zstd") as file:
        file.write(lines)
    table = pa.table({"text": texts})
    pq.write_table(table, tmp_path / "f.parquet")
    with pa.OSFile(str(tmp_path / "g.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, 1000)
    for names in ([path.name for path in sorted(tmp_path.iterdir())], ["a.jsonl#9000", "f.parquet"]):
        sources = open_sources([str(tmp_path / name) for name in names], chunk_bytes=1 << 16)
        shares = [sources.share for _ in sources.chunks()]
        assert shares == sorted(shares)
        assert 0 < shares[0] < 0.6
        assert shares[-1] == 1
        assert len(set(shares)) > len(names)
