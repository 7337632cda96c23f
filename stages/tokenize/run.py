"""Tokenize: read chunks of rows, encode them on all cores, write tokens and the ledger in the order of the input.

The work on a chunk is one call into the Rust core with the interpreter lock released, and depends on the chunk alone;
so any number of threads writes the same bytes. At most a few chunks are in memory. Given a tokens artifact, the same
encoder weighs its rows again and encodes nothing.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from postmill import _native
from postmill.io.errors import BAD_DATA, MISMATCH, ArtifactError, ConfigError, StageError
from postmill.io.manifest import Artifact
from postmill.io.model_folder import tokenizer_digest
from postmill.io.schemas import LEDGER_V1, TOKENS_V1
from postmill.io.table import TableReader, TableWriter
from postmill.stages.progress import Progress
from postmill.stages.protocol import Inputs, Out, Result
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.tokenize.model import ChosenTemplates, TokenizerFolder, choose_templates, load_tokenizer

TOKENS = "tokens.arrow"
_REWEIGHABLE = frozenset({"loss_scale", "loss_rules", "engine"})
_NOTHING = "nothing_to_train"

Item = TypeVar("Item")
Made = TypeVar("Made")


def run(cfg: Tokenize, inputs: Inputs, out: Out) -> Result:
    """Make `tokens.arrow`.

    Raises ConfigError (2) for options the model or the rules refuse; ArtifactError (65) at a bad row, with its place;
    StageError (65) when more than half of the rows have nothing to train on.
    """
    folder = inputs["model"][0].path
    assert folder is not None
    model = load_tokenizer(folder)
    template_files = [item.path for item in inputs["template"]]
    templates = choose_templates(model, cfg.template_name, template_files[0] if template_files else None)
    rules = [(item.name, item.path.read_text(encoding="utf-8")) for item in inputs["rules"] if item.path]
    with _refusals():
        encoder = make_encoder(cfg, model, templates, rules)
    artifacts = [item.artifact for item in inputs["data"] if item.artifact]
    digests = {"tokenizer": tokenizer_digest(folder), "template": templates.digest()}
    if artifacts:
        if len(inputs["data"]) > 1:
            raise ConfigError("tokenize: a tokens artifact is weighed again alone; give it as the only input")
        metrics = _reweigh(cfg, encoder, artifacts[0], digests, out)
    else:
        metrics = _encode(cfg, encoder, [item.name for item in inputs["data"]], out)
    return Result(metrics=metrics, digests=digests, versions={"engine": encoder.engine})


def make_encoder(
    cfg: Tokenize, model: TokenizerFolder, templates: ChosenTemplates, rules: list[tuple[str, str]]
) -> _native.ChatEncoder:
    """The encoder for a config. Raises NativeError, and ConfigError for a template that prints a date nobody chose."""
    unread = set(_native.loss_scale_files(cfg.loss_scale)) - {name for name, _ in rules}
    if unread:
        name = sorted(unread)[0]
        raise ConfigError(
            f"loss_scale: {name!r} is no strategy; if it is a rules file, pass --rules {name} and its name"
        )
    encoder = _native.ChatEncoder(
        model.tokenizer_json,
        bos=model.special_texts.get("bos_token"),
        eos=model.special_texts.get("eos_token"),
        extra_special=model.extra_special,
        template=templates.default,
        tools_template=templates.with_tools,
        template_name=templates.name,
        special_texts=list(model.special_texts.items()),
        date=tuple(int(part) for part in cfg.date.split("-")) if cfg.date else None,
        loss_scale=cfg.loss_scale,
        loss_rules=cfg.loss_rules,
        rule_files=rules,
        segments=cfg.segments,
        max_length=cfg.max_length,
        truncation=cfg.truncation,
        special_text=cfg.special_text,
        thinking=cfg.thinking,
        system=cfg.system,
        template_kwargs=msgspec.json.encode(cfg.template_kwargs).decode(),
        columns=list(cfg.columns.items()),
        model_name=cfg.model_name,
        model_author=cfg.model_author,
        skip_bad_rows=cfg.on_bad_row == "skip",
        max_line_bytes=cfg.max_line_bytes,
        engine=cfg.engine,
    )
    if encoder.date is not None and cfg.date is None and "date_string" not in cfg.template_kwargs:
        raise ConfigError(
            "date: the chat template prints today's date, so tomorrow would make other tokens; pass --date YYYY-MM-DD"
        )
    return encoder


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What the Rust core refuses, as our own errors."""
    try:
        yield
    except _native.NativeError as error:
        refusal = ConfigError if error.code == 2 else ArtifactError
        raise refusal(str(error), error.code) from error


def _in_order(work: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """`map(work, items)` on threads, with a bounded number of items on their way."""
    with ThreadPoolExecutor(threads, "tokenize") as pool:
        pending: deque[Future[Made]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


Encoded = tuple[pa.RecordBatch, pa.RecordBatch, dict[str, Any]]


def _encode(cfg: Tokenize, encoder: _native.ChatEncoder, references: list[str], out: Out) -> dict[str, Any]:
    from postmill.stages.tokenize.sources import Chunk, open_sources

    sources = open_sources(
        references,
        seed=cfg.seed,
        mix=cfg.mix,
        stop=cfg.mix_stop,
        validation=cfg.val_ratio,
        side=cfg.split if cfg.val_ratio else "all",
        max_line_bytes=cfg.max_line_bytes,
    )
    names = [source.name for source in sources.sources]

    def encode(item: tuple[Chunk, list[int]]) -> Encoded:
        chunk, duplicates = item
        rows, ledger, counts = encoder.encode_chunk(
            chunk.data,
            names[chunk.source],
            chunk.source,
            chunk.first_line,
            chunk.first_record,
            chunk.copy,
            chunk.selection,
            duplicates,
        )
        return pa.record_batch(rows), pa.record_batch(ledger), counts

    def hash_rows(chunk: Chunk) -> tuple[Chunk, list[tuple[int, bytes]]]:
        place = (chunk.source, chunk.first_line, chunk.first_record, chunk.copy, chunk.selection)
        return chunk, encoder.content_hashes(chunk.data, *place)

    def without_duplicates() -> Iterator[tuple[Chunk, list[int]]]:
        seen: set[bytes] = set()
        for chunk, hashes in _in_order(hash_rows, sources.chunks(), out.threads):
            duplicates = []
            for record, content in hashes:
                if content in seen:
                    duplicates.append(record)
                seen.add(content)
            yield chunk, duplicates

    chunks = without_duplicates() if cfg.dedup else ((chunk, []) for chunk in sources.chunks())
    totals = Totals()
    writer = out.table(TOKENS, TOKENS_V1)
    with _refusals():
        for rows, ledger, counts in _in_order(encode, chunks, out.threads):
            writer.write(rows)
            out.ledger.add(ledger)
            out.ledger.keep(counts.pop("kept", 0))
            totals.add(rows, counts)
            Progress.say("tokenize", f"{totals.sums['rows']:,} rows, {totals.sums['tokens']:,} tokens")
    _close(writer, out)
    _check_trained(out, ", ".join(references))
    return totals.metrics() | {"sources": [Path(name).name for name in names]}


def _close(writer: TableWriter, out: Out) -> None:
    if out.sink is None:
        writer.close()


def _check_trained(out: Out, place: str) -> None:
    """Refuse data with no rows, or where a rule silences most of them: the mask is hardly what was meant."""
    counts = out.ledger.counts
    if counts.rows_in == 0:
        raise ArtifactError(f"{place}: no rows; check the file and --columns", BAD_DATA)
    if counts.num_dropped == counts.rows_in:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.dropped.items()))
        raise StageError(f"{place}: nothing left of {counts.rows_in} rows ({reasons}); mend them", BAD_DATA)
    untrained = counts.dropped.get(_NOTHING, 0)
    if untrained > counts.rows_in / 2:
        raise StageError(
            f"{untrained} of {counts.rows_in} rows have nothing to train on; check --loss-scale and the rows' loss",
            BAD_DATA,
        )


class Totals:
    """Sums over chunks, for the manifest."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = dict.fromkeys(
            ("rows", "tokens", "trained_tokens", "encode_calls", "straddles", "special_look_alikes"), 0
        )
        self.weight_sum = 0.0
        self.histogram: list[int] = []
        self.closing_ids: set[int] = set()

    def add(self, rows: pa.RecordBatch, counts: dict[str, Any]) -> None:
        """Add a chunk, in the order of the input."""
        self.closing_ids.update(counts.pop("closing_ids", []))
        histogram = counts.pop("length_histogram", [])
        self.histogram += [0] * (len(histogram) - len(self.histogram))
        for bucket, number in enumerate(histogram):
            self.histogram[bucket] += number
        for name, number in counts.items():
            self.sums[name] = self.sums.get(name, 0) + number
        self.weight_sum += pc.sum(rows["weight_sum"], min_count=0).as_py()

    def metrics(self) -> dict[str, Any]:
        """`length_histogram`: rows by the largest power of two not above their length. `stop_ids`: what ends a turn."""
        sums = {name: number for name, number in sorted(self.sums.items()) if name != "rows_in"}
        tokens = max(1, sums["tokens"])
        return {
            **sums,
            "weight_sum": self.weight_sum,
            "trained_fraction": sums["trained_tokens"] / tokens,
            "length_histogram": {str(2**k): number for k, number in enumerate(self.histogram) if number},
            "stop_ids": sorted(self.closing_ids),
        }


def _reweigh(
    cfg: Tokenize, encoder: _native.ChatEncoder, artifact: Artifact, digests: dict[str, str], out: Out
) -> dict[str, Any]:
    """The rows of `artifact` with this config's weights. Raises ConfigError for options that need the text."""
    manifest = artifact.manifest
    if manifest.digests.get("tokenizer") != digests["tokenizer"]:
        raise ArtifactError(f"{artifact.path}: was made with another tokenizer than -m has; give that one", MISMATCH)
    if manifest.config.get("segments") == "ms-swift":
        raise ConfigError(f"{artifact.path}: ms-swift's segments depend on the weights; tokenize the text again")
    asked, default = msgspec.to_builtins(cfg), msgspec.to_builtins(Tokenize())
    for name, value in asked.items():
        if name not in _REWEIGHABLE and value not in (default[name], manifest.config.get(name)):
            raise ConfigError(
                f"{name}: cannot change without encoding again; give tokenize the text, not {artifact.path}"
            )
    if manifest.counts and manifest.counts.dropped.get(_NOTHING):
        Progress.warn("tokenize", f"{artifact.path} left out rows that had nothing to train on; they stay left out")
    reader = TableReader(artifact.file(TOKENS), TOKENS_V1)
    writer = out.table(TOKENS, TOKENS_V1)
    totals = Totals()
    with _refusals():
        batches = _in_order(lambda batch: pa.record_batch(encoder.reweight(batch)), reader, out.threads)
        for batch in batches:
            kept, dropped = _split_trained(batch)
            writer.write(kept)
            out.ledger.add(dropped)
            out.ledger.keep(kept.num_rows)
            trained = pc.sum(kept["trained_tokens"], min_count=0).as_py()
            tokens = pc.sum(kept["length"], min_count=0).as_py()
            totals.add(kept, {"rows": kept.num_rows, "tokens": tokens, "trained_tokens": trained})
    _close(writer, out)
    _check_trained(out, str(artifact.path))
    unchanged = ("sources", "length_histogram", "stop_ids", "straddles", "special_look_alikes", "rendered_bytes")
    return totals.metrics() | {name: manifest.metrics[name] for name in unchanged if name in manifest.metrics}


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
        pa.array(["dropped"] * gone.num_rows, pa.utf8()),
        pa.array([_NOTHING] * gone.num_rows, pa.utf8()),
        gone["length"],
        pa.array([0] * gone.num_rows, pa.int32()),
    ]
    return batch.filter(pc.invert(untrained)), pa.RecordBatch.from_arrays(columns, schema=LEDGER_V1)
