"""Weighing tokens again: other weights on the same ids, from an artifact or a pipe. Nothing is encoded."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from postmill import _native
from postmill.io.arrays import adopt, numbers, text
from postmill.io.errors import MISMATCH, ArtifactError, ConfigError
from postmill.io.manifest import Manifest
from postmill.io.schemas import LEDGER_V1, TOKENS_V1, with_media
from postmill.io.table import StreamReader, TableReader
from postmill.io.upstream import inside, keep_trailer
from postmill.stages.progress import Progress
from postmill.stages.protocol import Input, Out
from postmill.stages.shared.in_order import in_order
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.tokenize.core import refusals
from postmill.stages.tokenize.totals import NOTHING, TOKENS, Totals, check_trained, close

_REWEIGHABLE = frozenset({"loss_scale", "loss_rules", "train_closing", "engine"})
_UNCHANGED = ("sources", "length_histogram", "stop_ids", "straddles", "special_look_alikes", "rendered_bytes")


def reweigh(
    cfg: Tokenize, encoder: _native.ChatEncoder, given: Input, digests: dict[str, str], out: Out
) -> dict[str, Any]:
    """The rows of `given` with this config's weights; returns the metrics.

    A stream's own ledger and manifest are kept inside the artifact, as its ancestor. Raises ConfigError (2) for options
    that need the text, ArtifactError (78) for tokens of another tokenizer, (76) for a stream that was cut.
    """
    place = str(given.path or given.name)
    if given.stream is None:
        assert given.artifact is not None
        made = given.artifact.manifest
        _check(cfg, made, digests, place)
        totals = _weigh(encoder, TableReader(given.artifact.file(TOKENS), TOKENS_V1), out)
    else:
        if out.sink is not None:
            raise ConfigError("tokenize: a stream is weighed again into an artifact, to keep its ledger; pass -o DIR")
        totals = _weigh(encoder, given.stream, out)
        made = _keep(given.stream, out)
        _check(cfg, made, digests, place)
    check_trained(out, place)
    return totals.metrics() | {name: made.metrics[name] for name in _UNCHANGED if name in made.metrics}


def _check(cfg: Tokenize, made: Manifest, digests: dict[str, str], place: str) -> None:
    if made.digests.get("tokenizer") != digests["tokenizer"]:
        raise ArtifactError(f"{place}: was made with another tokenizer than -m has; give that one", MISMATCH)
    if made.config.get("segments") == "ms-swift":
        raise ConfigError(f"{place}: ms-swift's segments depend on the weights; tokenize the text again")
    asked, default = msgspec.to_builtins(cfg), msgspec.to_builtins(Tokenize())
    for name, value in asked.items():
        if name not in _REWEIGHABLE and value not in (default[name], made.config.get(name)):
            raise ConfigError(f"{name}: cannot change without encoding again; give tokenize the text, not {place}")
    if made.counts and made.counts.dropped.get(NOTHING):
        Progress.warn("tokenize", f"{place} left out rows that had nothing to train on; they stay left out")


def _weigh(encoder: _native.ChatEncoder, batches: TableReader | StreamReader, out: Out) -> Totals:
    has_media = "media" in batches.schema.names
    writer = out.table(TOKENS, with_media(TOKENS_V1) if has_media else TOKENS_V1)
    totals = Totals()
    with refusals():
        weighed: Iterator[pa.RecordBatch] = in_order(lambda batch: adopt(encoder.reweight(batch)), batches, out.threads)
        for batch in weighed:
            kept, dropped = _split_trained(batch)
            writer.write(kept)
            out.ledger.add(dropped)
            out.ledger.keep(kept.num_rows)
            trained = pc.sum(kept["trained_tokens"], min_count=0).as_py()
            tokens = pc.sum(kept["length"], min_count=0).as_py()
            totals.add(kept, {"rows": kept.num_rows, "tokens": tokens, "trained_tokens": trained})
    close(writer, out)
    return totals


def _keep(stream: StreamReader, out: Out) -> Manifest:
    """What the stream said of itself, kept inside the artifact."""
    assert stream.trailer is not None  # a stream that ends without one has raised
    keep_trailer(stream.trailer, inside(out.dir))
    return stream.trailer.manifest


def _split_trained(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Rows with something to train on, and ledger lines for the others; a pair stays or goes as one."""
    untrained = pc.equal(batch["trained_tokens"], 0)
    pairs = pc.drop_null(batch["pair_id"].filter(untrained)).unique()
    if len(pairs):
        untrained = pc.or_(untrained, pc.fill_null(pc.is_in(batch["pair_id"], value_set=pairs), False))
    gone = batch.filter(untrained)
    columns = [
        gone["row_id"],
        gone["source"],
        gone["line"],
        text(["dropped"] * gone.num_rows),
        text([NOTHING] * gone.num_rows),
        gone["length"],
        numbers([0] * gone.num_rows, pa.int32()),
    ]
    return batch.filter(pc.invert(untrained)), pa.RecordBatch.from_arrays(columns, schema=LEDGER_V1)
