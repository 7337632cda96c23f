"""Tokenize: read chunks of rows, encode them on all cores, write tokens and the ledger in the order of the input.

The work on a chunk is one call into the Rust core with the interpreter lock released, and depends on the chunk alone;
so any number of threads writes the same bytes. At most a few chunks are in memory. Given tokens, the same encoder
weighs their rows again and encodes nothing (`reweigh`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from postmill import _native
from postmill.io.arrays import adopt, to_numpy
from postmill.io.digest import digest_bytes
from postmill.io.errors import ConfigError
from postmill.io.model_folder import tokenizer_digest
from postmill.io.rollouts import PROMPTS
from postmill.io.schemas import PROMPTS_V1, TOKENS_V1, with_media
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Inputs, Out, Result
from postmill.stages.shared.agent_formats.table import format_json
from postmill.stages.shared.in_order import in_order
from postmill.stages.shared.media.families.table import Family, find_family
from postmill.stages.tables import closest
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.tokenize.core import refusals
from postmill.stages.tokenize.notes import Notes, check_columns
from postmill.stages.tokenize.parts import Encoded, Parts, PartWriter, part_path
from postmill.stages.tokenize.reading import Reading
from postmill.stages.tokenize.tokenizer import ChosenTemplates, TokenizerFolder, choose_templates, load_tokenizer
from postmill.stages.tokenize.totals import TOKENS, Totals, check_trained, close


def run(cfg: Tokenize, inputs: Inputs, out: Out) -> Result:
    """Make `tokens.arrow`, or `prompts.arrow` for rollout.

    Raises ConfigError (2) for options the model or the rules refuse; ArtifactError (65) at a bad row, with its place;
    StageError (65) when more than half of the rows have nothing to train on.
    """
    folder = inputs["model"][0].path
    assert folder is not None
    model = load_tokenizer(folder)
    template_files = [item.path for item in inputs["template"]]
    if cfg.plain and template_files:
        raise ConfigError("plain: writes without a chat template; drop it or --chat-template")
    family = read_family(folder, model)
    templates = choose_templates(
        model, cfg.template_name, template_files[0] if template_files else None, family.template if family else None
    )
    rules = [(item.name, item.path.read_text(encoding="utf-8")) for item in inputs["rules"] if item.path]
    with refusals():
        encoder = make_encoder(cfg, model, templates, rules, family)
    digests = {"tokenizer": tokenizer_digest(folder), "template": templates.digest()}
    if cfg.agent_format:
        digests["agent_format"] = digest_bytes(format_json(cfg.agent_format).encode())
    if any(item.kind == "tokens" for item in inputs["data"]):
        if cfg.for_ == "prompt":
            raise ConfigError("for: prompts are made of rows, not of tokens; give tokenize the text")
        if len(inputs["data"]) > 1:
            raise ConfigError("tokenize: tokens are weighed again alone; give them as the only input")
        if out.shard:
            raise ConfigError("--shard: tokens are weighed again in one go; leave it out")
        from postmill.stages.tokenize.reweigh import reweigh  # needs Arrow's computing half, 35 ms to load

        metrics = reweigh(cfg, encoder, inputs["data"][0], digests, out)
    else:
        metrics = _encode(cfg, encoder, [item.name for item in inputs["data"]], out, family is not None)
    return Result(metrics=metrics, digests=digests, versions={"engine": encoder.engine})


def read_family(folder: Path, model: TokenizerFolder) -> Family | None:
    """How the model's pictures are written; none, and a warning, where nobody here knows it."""
    try:
        return find_family(folder, model.special_texts)
    except ConfigError as error:
        Progress.warn("tokenize", f"{error}; rows with pictures will be refused")
        return None


STRATEGIES = (
    "default", "last_round", "all", "base", "ignore_empty_think", "ignore_think_prefix", "react", "hermes", "qwen",
    "agentflan", "alpha_umi", "swift-table-14",
)  # fmt: skip
"""Names that `--loss-scale` knows, as the native part has them."""


def make_encoder(
    cfg: Tokenize,
    model: TokenizerFolder,
    templates: ChosenTemplates,
    rules: list[tuple[str, str]],
    family: Family | None = None,
) -> _native.ChatEncoder:
    """The encoder for a config. Raises NativeError, and ConfigError for a rules file that was not given."""
    unread = set(_native.loss_scale_files(cfg.loss_scale)) - {name for name, _ in rules}
    if unread:
        name = sorted(unread)[0]
        near = closest(name, list(STRATEGIES))
        raise ConfigError(
            f"--loss-scale: {name!r} is no strategy{near}; there are {', '.join(STRATEGIES)}; if it is a rules file,"
            f" pass --rules {name} and its name"
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
        unwritten=cfg.unwritten,
        thinking=cfg.thinking,
        system=cfg.system,
        template_kwargs=msgspec.json.encode(cfg.template_kwargs).decode(),
        columns=list(cfg.columns.items()),
        model_name=cfg.model_name,
        model_author=cfg.model_author,
        skip_bad_rows=cfg.on_bad_row == "skip",
        max_line_bytes=cfg.max_line_bytes,
        engine=cfg.engine,
        purpose=cfg.for_,
        drop=cfg.drop,
        train_roles=list(cfg.train_roles) or ["assistant"],
        train_closing=cfg.train_closing,
        roles=list(cfg.roles.items()),
        each_turn=cfg.each_turn,
        continue_final=cfg.continue_final,
        number_calls=cfg.number_calls,
        plain=cfg.plain,
        unpair=cfg.unpair,
        agent_format=(cfg.agent_format, format_json(cfg.agent_format)) if cfg.agent_format else None,
        media=family.to_json() if family else None,
        media_roots=cfg.media_root,
    )
    return encoder


def check_date(cfg: Tokenize, encoder: _native.ChatEncoder) -> None:
    """Raises ConfigError where the template prints a date that nobody chose."""
    if encoder.date is not None and cfg.date is None and "date_string" not in cfg.template_kwargs:
        raise ConfigError(
            "date: the chat template prints today's date, so tomorrow would make other tokens; pass --date YYYY-MM-DD"
        )


def _is_rendered(rows: pa.RecordBatch) -> bool:
    """Whether the chat template wrote any of the rows."""
    if "messages" in rows.schema.names:
        return bool(rows["messages"].null_count < rows.num_rows)
    offsets = to_numpy(rows["turns"].offsets)
    return bool(offsets[-1] > offsets[0])


def _say(totals: Totals, meter: Meter, share: float) -> None:
    so_far = f"{totals.sums['rows']:,} rows, {totals.sums['tokens']:,} tokens"
    Progress.say("tokenize", ", ".join(part for part in (meter.share(share), so_far, meter.left(share)) if part))


def _encode(
    cfg: Tokenize, encoder: _native.ChatEncoder, references: list[str], out: Out, has_media: bool
) -> dict[str, Any]:
    from postmill.stages.tokenize.sources import Chunk, open_sources

    sources = open_sources(
        references,
        seed=cfg.seed,
        mix=cfg.mix,
        stop=cfg.mix_stop,
        validation=cfg.val_ratio,
        side=cfg.split if cfg.val_ratio else "all",
        max_line_bytes=cfg.max_line_bytes,
        reading=Reading(columns=cfg.columns, drop=frozenset(cfg.drop), keep_cut=cfg.on_cut == "keep"),
    )
    names = [source.name for source in sources.sources]
    folders = [str(source.path.parent) if source.path.is_file() else None for source in sources.sources]

    parts = Parts(out.target and out.checkpoints, out.key)

    def encode(item: tuple[int, tuple[Chunk, list[int]]]) -> Encoded:
        number, (chunk, duplicates) = item
        made = parts.read(number)
        if made is not None:
            return made
        rows, ledger, counts = encoder.encode_chunk(
            chunk.data,
            names[chunk.source],
            *chunk.place,
            duplicates,
            folders[chunk.source] if has_media else None,
        )
        return adopt(rows), adopt(ledger), counts | {"source": chunk.source}

    def hash_rows(chunk: Chunk) -> tuple[Chunk, list[tuple[int, bytes]]]:
        return chunk, encoder.content_hashes(chunk.data, *chunk.place)

    def without_duplicates() -> Iterator[tuple[Chunk, list[int]]]:
        seen: set[bytes] = set()
        for chunk, hashes in in_order(hash_rows, sources.chunks(), out.threads):
            duplicates = []
            for record, content in hashes:
                if content in seen:
                    duplicates.append(record)
                seen.add(content)
            yield chunk, duplicates

    chunks = without_duplicates() if cfg.dedup else ((chunk, []) for chunk in sources.chunks())
    numbered = enumerate(chunks)
    if out.shard:
        return _write_shard(out, (encode, numbered, _schema(cfg, has_media)))
    totals, meter = Totals(), Meter(1)
    notes = Notes(names)
    writer = out.table(PROMPTS if cfg.for_ == "prompt" else TOKENS, _schema(cfg, has_media))
    with refusals():
        for rows, ledger, counts in in_order(encode, numbered, out.threads):
            if _is_rendered(rows):
                check_date(cfg, encoder)  # text alone needs none
            writer.write(rows)
            out.ledger.add(ledger)
            out.ledger.keep(counts.pop("kept", 0))
            notes.look(counts, ledger)
            totals.add(rows, counts)
            _say(totals, meter, sources.share)
    close(writer, out)
    out.after_commit = parts.remove
    notes.say(cfg, totals, sources.reading)
    check_columns(cfg, totals, sources)
    check_trained(out, ", ".join(references), notes.remedy(cfg))
    cut = {"cut_files": sources.reading.cut} if sources.reading.cut else {}
    return totals.metrics() | {"sources": names} | cut


def _schema(cfg: Tokenize, has_media: bool) -> pa.Schema:
    schema = PROMPTS_V1 if cfg.for_ == "prompt" else TOKENS_V1
    return with_media(schema) if has_media else schema


def _write_shard(out: Out, work: tuple[Any, Iterator[tuple[int, Any]], pa.Schema]) -> dict[str, Any]:
    """Encode every Nth chunk into a file beside the output, for the run that commits all."""
    assert out.shard is not None
    encode, numbered, schema = work
    mine, of = out.shard
    path = part_path(out.checkpoints, out.key, out.shard)
    if path.is_file() and not out.force:
        return {}
    chunks = ((number, item) for number, item in numbered if number % of == mine - 1)
    writer, rows = PartWriter(path, schema), 0
    try:
        with refusals():
            for number, encoded in in_order(lambda item: (item[0], encode(item)), chunks, out.threads):
                writer.write(number, encoded)
                rows += encoded[0].num_rows
                Progress.say("tokenize", f"shard {mine}/{of}: {rows:,} rows")
        writer.commit()
    except BaseException:
        writer.abandon()
        raise
    Progress.say("tokenize", f"shard {mine}/{of}: {rows:,} rows in {path}", always=True)
    return {}
