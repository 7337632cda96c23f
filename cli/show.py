"""`postmill show`: what is trained on, coloured by weight: raw rows, tokens, bins, the batch of a step."""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from postmill.cli.rows import RowName, find_rows, place, source_names
from postmill.cli.tool import Args, ancestors, input_paths, need, open_artifact, parse
from postmill.io.errors import MISMATCH, NO_INPUT, ArtifactError, ConfigError
from postmill.io.manifest import MANIFEST, Artifact

if TYPE_CHECKING:
    from postmill._native import ChatEncoder
    from postmill.cli.show_media import BoxReader, Shares
    from postmill.io.media import Medium
    from postmill.io.packed import PackedReader
    from postmill.stages.tokenize.config import Tokenize

USAGE = """
Show what is trained on, coloured by weight: rows of a raw file, of tokens, of a bin, or of a training step.

usage: postmill show chats.jsonl -m base/ [-n 3]     any data that tokenize reads; - is stdin
       postmill show tokens/ [-n 3] [--row ID|file:line]
       postmill show packed/ [--bin 0] [--row ID|file:line]
       postmill show packed/ --ranks 8 [--bins-per-rank 4]
       postmill show run/ --step 40

  -m MODEL       model with the tokenizer, a folder or a hub's owner/name (default: where the tokens were made with it)
  -n N           how many rows or bins (default: 3)
  --row ROW      only this row: its id, the first digits of it, or file:line
  --bin N        only this bin
  --step N       the bins of this training step, counted from 1
  --ranks N      instead of rows, how evenly the bins of a step divide over this many ranks
  --bins-per-rank N
                 bins that each rank computes in a step (default: 1)
  --loss-scale S, --chat-template FILE, --template-name N, --date YYYY-MM-DD, --system TEXT, --thinking T,
  --columns OLD=NEW, --drop COLUMN
                 for raw data: as tokenize has them; the last two once
  --ids          token ids too
  --html FILE    a page that needs nothing else, instead of the terminal
"""

_ROLES = ("system", "user", "assistant", "tool")
_SHOWN_RAW = 2000
_PLACE = ("row_id", "source", "line", "length")
"""Columns that say which row it is and how much of its bin it takes."""


class Piece(msgspec.Struct, frozen=True):
    """A run of tokens of one weight inside one turn, or those of a picture, a sound or a video."""

    text: str
    ids: list[int]
    weight: float
    role: str
    medium: "Medium | None" = None


class Shown(msgspec.Struct, frozen=True):
    """A row ready to print: a title, the raw record if there is one, and pieces."""

    title: str
    pieces: list[Piece]
    raw: str = ""
    boxes: "list[list[Shares]]" = []
    """Of each medium, in the order of the pieces."""


def pieces_of(row: dict[str, Any], encoder: "ChatEncoder") -> list[Piece]:
    """The row cut wherever its weight or its turn changes, and around its pictures, sounds and videos."""
    from postmill.cli.show_media import describe, media_of_row  # which loads what reads tables

    ids: list[int] = row["input_ids"]
    turns, spans = row["turns"] or [], row["spans"] or []
    cuts = {0, len(ids)}
    for turn in turns:
        cuts |= {turn["start"], turn["end"], turn["generated_start"], turn["generated_end"]}
    for span in spans:
        cuts |= {span["start"], span["end"]}
    media = media_of_row(row)
    for medium in media:
        # nothing cuts the tokens of a picture
        cuts = {cut for cut in cuts if not medium.start < cut < medium.end} | {medium.start, medium.end}
    whole = {medium.start: medium for medium in media}
    edges = sorted(cut for cut in cuts if 0 <= cut <= len(ids))
    pieces = []
    for start, end in itertools.pairwise(edges):
        weight = next((s["weight"] for s in spans if s["start"] <= start < s["end"]), 0.0)
        role = next((_ROLES[t["role"]] for t in turns if t["start"] <= start < t["end"]), "")
        shown = whole.get(start)
        text = f"<{describe(shown)}>" if shown else encoder.read(ids[start:end])
        pieces.append(Piece(text, ids[start:end], weight, role, shown))
    return pieces


def _shown(title: str, row: dict[str, Any], reader: "Reader", raw: str = "") -> Shown:
    """A row that is ready to print."""
    pieces = pieces_of(row, reader.encoder)
    return Shown(title, pieces, raw, reader.boxes.read([piece.medium or piece.text for piece in pieces]))


def _title(row: dict[str, Any], names: list[str]) -> str:
    parts = [place(row, names), row["row_id"].hex()[:12], f"{row['length']} tokens"]
    parts.append(f"{row['trained_tokens']} trained, weight {row['weight_sum']:g}")
    if row["side"] is not None:
        parts.append("rejected" if row["side"] else "chosen")
    return "  ".join(parts)


class Reader(NamedTuple):
    """What reads ids and boxes of a model's rows."""

    encoder: "ChatEncoder"
    boxes: "BoxReader"
    has_media: bool
    """Whether the model reads pictures, sounds or videos."""


class Viewer:
    """Makes rows of an artifact ready to print, with the tokenizer that its tokens were made with."""

    def __init__(self, artifact: Artifact, tokens: Artifact, model: str | None) -> None:
        self.names = source_names(artifact)
        self.reader = _reader(_model_folder(tokens, model))
        self.encoder = self.reader.encoder

    def show(self, row: dict[str, Any], prefix: str = "") -> Shown:
        return _shown(prefix + _title(row, self.names), row, self.reader)


def _model_folder(tokens: Artifact, given: str | None) -> Path:
    from postmill.io.model_folder import tokenizer_digest
    from postmill.stages.shared.model_reference import find_model

    wanted = tokens.manifest.digests.get("tokenizer")
    if given:
        places = [find_model(given, tokenizer_only=True).path]
    else:
        places = [path for entry, path in input_paths(tokens) if entry.port == "model" and path]
    for folder in places:
        if folder.is_dir() and (wanted is None or tokenizer_digest(folder) == wanted):
            return folder
    if given:
        raise ArtifactError(f"{given}: not the tokenizer that {tokens.path} was made with ({wanted})", MISMATCH)
    raise ArtifactError(f"{tokens.path}: its tokenizer is no longer where it was; pass -m MODEL", NO_INPUT)


_AS_TOKENIZE = ("--loss-scale", "--template-name", "--date", "--system", "--thinking", "--columns", "--drop")
"""Flags for raw data that are options of tokenize."""


def _raw_config(args: Args) -> "Tokenize":
    """What tokenize would be told, with today's date unless one is given. Raises ConfigError."""
    from postmill.cli.flags import Given, resolve
    from postmill.stages.tokenize.config import Tokenize

    given = {name: args.options[name] for name in _AS_TOKENIZE if name in args.options}
    said = {name[2:].replace("-", "_"): [Given(text, name, True)] for name, text in given.items()}
    config: Tokenize = resolve(Tokenize, said, "show")
    return config


def _reader(folder: Path, config: "Tokenize | None" = None, template: Path | None = None) -> Reader:
    from datetime import UTC, datetime

    from postmill.cli.show_media import BoxReader
    from postmill.stages.tokenize.config import Tokenize
    from postmill.stages.tokenize.run import make_encoder, read_family
    from postmill.stages.tokenize.tokenizer import choose_templates, load_tokenizer

    model = load_tokenizer(folder)
    config = config or Tokenize()
    dated = msgspec.structs.replace(config, date=config.date or datetime.now(UTC).strftime("%Y-%m-%d"))
    family = read_family(folder, model)
    chosen = choose_templates(model, config.template_name, template, family.template if family else None)
    return Reader(make_encoder(dated, model, chosen, [], family), BoxReader(family), family is not None)


def raw_rows(reference: str, args: Args, wanted: RowName | None, count: int) -> "tuple[Iterator[Shown], ChatEncoder]":
    """The first rows of raw data, or of those that `wanted` names, as tokenize would make them; and what reads ids."""
    model = args.options.get("-m")
    if model is None:
        raise ConfigError(
            "show: rows of a raw file need a tokenizer; pass -m MODEL, to render and tokenize it as training would"
        )
    from postmill.stages.shared.model_reference import find_model
    from postmill.stages.tokenize.core import refusals

    config = _raw_config(args)
    template = Path(args.options["--chat-template"]) if "--chat-template" in args.options else None
    if template is not None and not template.is_file():
        raise ArtifactError(f"{template}: no such file", NO_INPUT)
    with refusals():
        reader = _reader(find_model(model, tokenizer_only=True).path, config, template)
    return itertools.islice(_encoded(reference, config, reader, wanted), count), reader.encoder


def _encoded(reference: str, config: "Tokenize", reader: Reader, wanted: RowName | None) -> Iterator[Shown]:
    import pyarrow as pa

    from postmill.stages.tokenize.core import refusals
    from postmill.stages.tokenize.reading import Reading
    from postmill.stages.tokenize.sources import open_sources

    sources = open_sources([reference], reading=Reading(columns=config.columns, drop=frozenset(config.drop)))
    names = [source.name for source in sources.sources]
    folders = [str(source.path.parent) if source.path.is_file() else None for source in sources.sources]
    for chunk in sources.chunks():
        with refusals():
            folder = folders[chunk.source] if reader.has_media else None
            rows, *_ = reader.encoder.encode_chunk(chunk.data, names[chunk.source], *chunk.place, [], folder)
        lines = chunk.data.split(b"\n")
        for row in pa.record_batch(rows).to_pylist():
            if wanted is None or wanted.fits(row, names):
                raw = lines[row["line"] - chunk.first_line].decode(errors="replace")
                yield _shown(_title(row, names), row, reader, raw[:_SHOWN_RAW])


def _bins(reader: "PackedReader", bins: Sequence[int], viewer: Viewer, wanted: RowName | None) -> Iterator[Shown]:
    """The rows of `bins`: all, or those that `wanted` names."""
    for index in bins:
        start = 0
        rows = reader.rows(index)
        for number, row in enumerate(reader.records(rows, _PLACE)):
            if wanted is None or wanted.fits(row, viewer.names):
                [whole] = reader.records(rows[number : number + 1])
                yield viewer.show(whole, f"bin {index} @{start}  ")
            start += row["length"]


def _step_bins(run: Artifact, number: int, reader: "PackedReader") -> list[int]:
    """Bins of a training step of a run, by the options that decide it, which every version has."""
    from postmill.stages.options import from_plain
    from postmill.stages.train.config import Train
    from postmill.stages.train.plan import Steps

    told = run.manifest.config
    plan: dict[str, Any] = {name: told[name] for name in ("epochs", "steps", "seed") if name in told}
    plan["batch"] = {name: value for name, value in told.get("batch", {}).items() if name == "bins_per_step"}
    try:
        config = from_plain(Train, plan)
    except ConfigError as error:
        raise ConfigError(f"--step: {run.path} was made by another version of train ({error}); look at bins") from error
    steps = Steps(config, reader, 1)
    if not 1 <= number <= steps.total:
        raise ConfigError(f"--step {number}: the run has steps 1 to {steps.total}")
    return [int(index) for index in steps[number - 1].bins.ravel() if index >= 0]


def _collect(args: Args, count: int) -> Iterator[Shown]:
    path = Path(args.words[0])
    wanted = RowName(args.options["--row"]) if "--row" in args.options else None
    if not (path / MANIFEST).is_file() and path.name != MANIFEST:
        yield from raw_rows(args.words[0], args, wanted, count)[0]
        return
    artifact = open_artifact(args.words[0])
    kind, model = artifact.manifest.kind, args.options.get("-m")
    if kind == "tokens":
        viewer = Viewer(artifact, artifact, model)
        rows = find_rows(artifact, wanted, viewer.names)
        yield from (viewer.show(row.to_pylist()[0]) for *_, row in itertools.islice(rows, count))
        return
    packed = artifact if kind == "packed" else _parent_packed(artifact)
    from postmill.io.packed import PackedReader

    reader = PackedReader(packed.path)
    viewer = Viewer(packed, reader.tokens[0], model)
    if kind != "packed":
        bins: Sequence[int] = _step_bins(artifact, int(args.options.get("--step", "1")), reader)
    elif "--bin" in args.options:
        bins = [int(args.options["--bin"])]
    else:
        bins = range(len(reader) if wanted else min(count, len(reader)))
    if any(index >= len(reader) for index in bins):
        raise ConfigError(f"--bin {bins[0]}: there are {len(reader)} bins, counted from 0")
    yield from _bins(reader, bins, viewer, wanted)


def _parent_packed(artifact: Artifact) -> Artifact:
    for _, entry, _, parent in ancestors(artifact):
        if entry.kind == "packed" and parent is not None:
            return parent
    raise ArtifactError(
        f"{artifact.path}: the packed artifact it was trained on is not to be found; move it back", NO_INPUT
    )


def run(argv: list[str]) -> int:
    """Print rows, or write a page."""
    numbers = ("-n", "--bin", "--step", "--ranks", "--bins-per-rank")
    valued = ("-m", *numbers, "--row", "--html", "--chat-template", *_AS_TOKENIZE)
    args = parse(argv, USAGE, switches=("--ids",), valued=valued)
    if args is None:
        return 0
    need(args, 1, 1, USAGE)
    for name in numbers:
        if not args.options.get(name, "0").isdecimal():
            raise ConfigError(f"{name}: {args.options[name]!r}: expected a number")
    if "--ranks" in args.options:
        from postmill.cli.show_balance import balance

        artifact = open_artifact(args.words[0])
        packed = artifact if artifact.manifest.kind == "packed" else _parent_packed(artifact)
        sys.stdout.write(balance(packed.path, args) + "\n")
        return 0
    from postmill.cli import show_render

    shown = _collect(args, int(args.options.get("-n", "3")))
    if "--html" in args.options:
        Path(args.options["--html"]).write_text(show_render.to_html(args.words[0], shown), encoding="utf-8")
        sys.stdout.write(args.options["--html"] + "\n")
        return 0
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    any_shown = False
    for row in shown:
        sys.stdout.write(show_render.to_terminal(row, colour=colour, ids=args.has("--ids")))
        any_shown = True
    if not any_shown:
        raise ArtifactError(f"{args.words[0]}: no such row; look at postmill ledger why", NO_INPUT)
    return 0
