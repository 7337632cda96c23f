"""`postmill view`: an artifact, or a folder of them, as one HTML file that needs nothing else."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from postmill.cli.inspect import describe
from postmill.cli.rows import place, source_names
from postmill.cli.show import Viewer, pieces_of
from postmill.cli.tool import ancestors, need, open_artifact, parse
from postmill.cli.view_page import Column, Page, Table, to_html
from postmill.io.errors import NO_INPUT, ArtifactError, ConfigError
from postmill.io.manifest import MANIFEST, Artifact, load_artifact

if TYPE_CHECKING:
    from postmill._native import ChatEncoder
    from postmill.cli.show_media import Copies

USAGE = """
Write one HTML file that shows an artifact: tokens with their weights, bins and their fill, rollouts and rewards,
questions and answers, the curves of a run, options, and where all of it came from.

usage: postmill view DIR [-o FILE.html] [-m MODEL] [-n ROWS]

  postmill view out/pack -o pack.html

DIR is an artifact, or a folder of artifacts, as `postmill run` makes. The file opens from disk and asks nothing of any
network. It lists up to 100,000 rows, and stays below 5 MB.

  -o FILE    where to write (default: NAME.html here)
  -m MODEL   model with the tokenizer (default: where the tokens were made with it)
  -n ROWS    how many rows to show token by token (default: 300)
"""
MOST_ROWS = 100_000
_LONGEST = 8
"""Tokens that are looked at together at most, where their bytes make no character."""
_TOKENS = ("row_id", "source", "line", "length", "trained_tokens", "weight_sum")


def run(argv: list[str]) -> int:
    """Write the page and print its name."""
    args = parse(argv, USAGE, valued=("-o", "-m", "-n"))
    if args is None:
        return 0
    need(args, 1, 1, USAGE)
    if not args.options.get("-n", "0").isdecimal():
        raise ConfigError(f"-n {args.options['-n']}: expected a number of rows")
    shown = int(args.options.get("-n", "300"))
    folder = Path(args.words[0])
    made = page_of(folder, args.options.get("-m"), shown)
    name = _name(folder)
    target = Path(args.options.get("-o", f"{name}.html"))
    target.write_bytes(made)
    sys.stdout.write(f"{target}\n")
    return 0


def page_of(folder: Path, model: str | None = None, shown: int = 300) -> bytes:
    """The file about an artifact, or about a folder of them. Raises ArtifactError (66)."""
    artifacts = _artifacts(folder)
    tables = [table for artifact in artifacts for table in tables_of(artifact, model, shown)]
    curves = [one for artifact in artifacts for one in curves_of(artifact)]
    summary = [(f"about {one.path.name}", _summary(one)) for one in artifacts]
    about = f"{len(artifacts)} artifacts" if len(artifacts) > 1 else describe(artifacts[0]).splitlines()[0]
    return to_html(Page(tables, curves, graph_of(artifacts), summary), _name(folder), about)


def _name(folder: Path) -> str:
    return folder.resolve().name or "postmill"


def _artifacts(folder: Path) -> list[Artifact]:
    """The artifact, or those in the folder. Raises ArtifactError (66) if there is none."""
    if (folder / MANIFEST).is_file() or folder.name == MANIFEST or not folder.is_dir():
        return [open_artifact(str(folder))]
    artifacts = [load_artifact(path) for path in sorted(folder.iterdir()) if (path / MANIFEST).is_file()]
    if not artifacts:
        raise ArtifactError(f"{folder}: no artifact in it; give what a stage made, or the -o of run", NO_INPUT)
    return artifacts


def _summary(artifact: Artifact) -> list[tuple[str, Any]]:
    """What `postmill inspect` says, as names and values."""
    lines: list[tuple[str, Any]] = []
    for line in describe(artifact).splitlines():
        name, _, value = line.strip().partition(" ")
        lines.append((name, value.strip()))
    return lines


def graph_of(artifacts: list[Artifact]) -> dict[str, Any]:
    """Artifacts and their ancestors as nodes, and which of them went into which."""
    nodes: list[dict[str, Any]] = []
    index: dict[str, int] = {}
    edges: set[tuple[int, int]] = set()

    def add(digest: str, depth: int, title: str, text: str, about: str) -> int:
        if digest not in index:
            index[digest] = len(nodes)
            nodes.append({"depth": depth, "title": title, "text": text, "about": about})
        number = index[digest]
        nodes[number]["depth"] = max(nodes[number]["depth"], depth)
        return number

    for artifact in artifacts:
        path = [add(artifact.digest, 0, artifact.manifest.stage, artifact.path.name, artifact.digest)]
        for depth, entry, where, parent in ancestors(artifact):
            del path[depth:]
            made = parent.manifest.stage if parent else entry.kind
            label = parent.path.name if parent else (where.name if where else entry.source or entry.digest[:19])
            digest = parent.digest if parent else entry.digest
            path.append(add(digest, depth, f"{made} ({entry.port})", label, f"{where or entry.source}\n{entry.digest}"))
            edges.add((path[depth], path[depth - 1]))
    return {"nodes": nodes, "edges": sorted(edges)}


def curves_of(artifact: Artifact) -> list[dict[str, Any]]:
    """What a run measured, step by step."""
    from postmill.cli.plot import METRICS, names_in, read_metrics
    from postmill.stages.shared.chart import thin

    if not artifact.file(METRICS).is_file():
        return []
    lines = read_metrics(str(artifact.path))
    curves = []
    for name in names_in(lines):
        points = [
            (float(line["step"]), float(line[name])) for line in lines if isinstance(line.get(name), (int, float))
        ]
        if len(points) > 1:
            curves.append({"name": f"{artifact.path.name}: {name}", "points": thin(points)})
    return curves


def tables_of(artifact: Artifact, model: str | None, shown: int) -> list[Table]:
    """The lists of an artifact, by its kind; none for weights."""
    makers: dict[str, Callable[[Artifact, str | None, int], list[Table]]] = {
        "tokens": _of_tokens,
        "packed": _of_bins,
        "rollouts": _of_rollouts,
        "rewards": _of_rewards,
        "eval": _of_answers,
    }
    maker = makers.get(artifact.manifest.kind)
    return maker(artifact, model, shown) if maker else []


def _rows(path: Path, columns: list[str], most: int = MOST_ROWS) -> Iterator[dict[str, Any]]:
    """The first rows of a table, with these columns."""
    from postmill.io.table import TableReader

    left = most
    for batch in TableReader(path):
        names = [name for name in columns if name in batch.schema.names]
        yield from batch.select(names).slice(0, left).to_pylist()
        left -= min(left, batch.num_rows)
        if left == 0:
            return


def _beyond(total: int, shown: int, how: str) -> tuple[str, str]:
    note = f"the first {MOST_ROWS:,} of {total:,}" if total > MOST_ROWS else ""
    return note, f"The first {min(shown, total):,} rows are here token by token; for this one: {how}"


def _viewer(artifact: Artifact, tokens: Artifact, model: str | None) -> "Viewer | None":
    """What reads ids back; None where the tokenizer is gone, and nobody named it."""
    try:
        return Viewer(artifact, tokens, model)
    except ArtifactError:
        if model:
            raise
        return None


def _pieces(row: dict[str, Any], encoder: "ChatEncoder | None", where: str, title: str = "") -> dict[str, Any]:
    """A row token by token: words, ids, weight and role of each run of one weight."""
    pieces = []
    runs = [(p.text, p.ids, p.weight, p.role) for p in pieces_of(row, encoder)] if encoder else _blind(row)
    for whole, ids, weight, role in runs:
        words = words_of(whole, ids, encoder) if encoder else [(f"{one} ", [one]) for one in ids]
        pieces.append(([word for word, _ in words], [part for _, part in words], weight, role))
    return {"title": title, "place": where, "pieces": pieces}


_MOST_COPIES = 1_500_000
"""Bytes of the small pictures of a page."""


def _seen(row: dict[str, Any], viewer: "Viewer | None", copies: "Copies") -> list[dict[str, Any]]:
    """The pictures, sounds and videos of a row, each with the boxes that its text names."""
    if not row.get("media") or viewer is None:
        return []
    pieces = pieces_of(row, viewer.encoder)
    media = [piece.medium for piece in pieces if piece.medium]
    boxes = viewer.reader.boxes.read([piece.medium or piece.text for piece in pieces])
    blocks = []
    for medium, found in zip(media, boxes, strict=True):
        shown = copies.show(medium)
        block: dict[str, Any] = {"title": shown.about, "text": shown.fault}
        if shown.picture:
            block["picture"] = [shown.picture, shown.width, shown.height, found]
        blocks.append(block)
    return blocks


def words_of(whole: str, ids: list[int], encoder: "ChatEncoder") -> list[tuple[str, list[int]]]:
    """What each token of a text says, or the whole, where they do not make it up one by one."""
    words = _words(ids, encoder)
    return words if "".join(word for word, _ in words) == whole else [(whole, ids)]


def _words(ids: list[int], encoder: "ChatEncoder") -> list[tuple[str, list[int]]]:
    """What each token says; tokens that share a character stay together."""
    words: list[tuple[str, list[int]]] = []
    group: list[int] = []
    for one in ids:
        group.append(one)
        text = encoder.read(group)
        if not ({"\x1a", "\ufffd"} & set(text)) or len(group) == _LONGEST:  # what `read` has for broken bytes
            words.append((text, group))
            group = []
    return [*words, (encoder.read(group), group)] if group else words


def _blind(row: dict[str, Any]) -> list[tuple[str, list[int], float, str]]:
    """Ids by weight, where no tokenizer tells what they say."""
    weights = [0.0] * len(row["input_ids"])
    for span in row["spans"]:
        weights[span["start"] : span["end"]] = [span["weight"]] * (span["end"] - span["start"])
    return [
        ("", [row["input_ids"][at] for at, _ in run_], weight, "")
        for weight, run_ in itertools.groupby(enumerate(weights), key=lambda pair: pair[1])
    ]


def _of_tokens(artifact: Artifact, model: str | None, shown: int) -> list[Table]:
    from postmill.cli.show_media import Copies
    from postmill.io.packed import TOKENS, TokenRows, token_tables

    names = source_names(artifact)
    total = len(TokenRows(token_tables(artifact)))
    viewer, copies = _viewer(artifact, artifact, model), Copies(_MOST_COPIES)
    rows = list(_rows(artifact.file(TOKENS), list(_TOKENS)))
    details = {}
    columns = [*_TOKENS, "input_ids", "spans", "turns", "side", "label", "channel", "media"]
    for number, row in enumerate(_rows(artifact.file(TOKENS), columns, shown)):
        about = [(name, row[name]) for name in ("side", "label", "channel") if row.get(name) is not None]
        block = _pieces(row, viewer.encoder if viewer else None, place(row, names), row["row_id"].hex())
        details[str(number)] = [block, *([{"lines": about}] if about else []), *_seen(row, viewer, copies)]
    note, beyond = _beyond(total, shown, f"postmill show {artifact.path} --row ID")
    return [Table(artifact.path.name, _row_columns(rows, names), details, total, note, beyond)]


def _row_columns(rows: list[dict[str, Any]], names: list[str]) -> list[Column]:
    return [
        Column("row", [row["row_id"].hex()[:12] for row in rows], wide=True),
        Column("source", [row["source"] for row in rows], names or ["source 0"], wide=True),
        Column("line", [row["line"] for row in rows]),
        Column("tokens", [row["length"] for row in rows]),
        Column("trained", [row["trained_tokens"] for row in rows]),
        Column("weight", [round(row["weight_sum"], 3) for row in rows]),
    ]


def _of_bins(artifact: Artifact, model: str | None, shown: int) -> list[Table]:
    from postmill.cli.show_media import Copies
    from postmill.io.packed import PackedReader

    reader = PackedReader(artifact.path)
    viewer, copies = _viewer(artifact, reader.tokens[0], model), Copies(_MOST_COPIES)
    names, capacity = source_names(artifact), int(artifact.manifest.config["row_tokens"])
    plan, most = reader.plan, min(len(reader), MOST_ROWS)
    details = {}
    left = shown
    for index in range(most):
        if left <= 0:
            break
        rows = reader.records(reader.rows(index))
        left -= len(rows)
        segments = [(row["length"], f"{place(row, names)}, {row['length']} tokens") for row in rows]
        blocks: list[dict[str, Any]] = [{"title": f"bin {index}", "total": capacity, "segments": segments}]
        encoder = viewer.encoder if viewer else None
        for row in rows:
            blocks += [_pieces(row, encoder, place(row, names), place(row, names)), *_seen(row, viewer, copies)]
        details[str(index)] = blocks
    columns = [
        Column("bin", list(range(most))),
        Column("tokens", plan.length[:most].tolist()),
        Column("fill %", [round(100 * int(length) / capacity, 1) for length in plan.length[:most]]),
        Column("rows", plan.num_rows[:most].tolist()),
        Column("trained", plan.trained_tokens[:most].tolist()),
        Column("weight", [round(float(weight), 3) for weight in plan.weight_sum[:most]]),
    ]
    note, _ = _beyond(len(reader), shown, "")
    beyond = f"postmill show {artifact.path} --bin N shows any bin; the first {len(details):,} are here."
    return [Table(artifact.path.name, columns, details, len(reader), note, beyond)]


_ROLLOUT = ("row_id", "source", "line", "prompt_id", "sample", "finish", "length", "prompt_length", "output", "error")


def _of_rollouts(artifact: Artifact, model: str | None, shown: int) -> list[Table]:
    from postmill.io.rollouts import ROLLOUTS

    return [_rollout_table(artifact, artifact.file(ROLLOUTS), [], shown)]


def _of_rewards(artifact: Artifact, model: str | None, shown: int) -> list[Table]:
    from postmill.io.rollouts import REWARDS, ROLLOUTS

    rewards = list(_rows(artifact.file(REWARDS), ["scores", "errors", "reward", "advantage", "kept", "drop_reason"]))
    parent = next(
        (ancestor for *_, ancestor in ancestors(artifact) if ancestor and ancestor.manifest.kind == "rollouts"), None
    )
    if parent is None:
        raise ArtifactError(f"{artifact.path}: the rollouts it scores are not to be found; move them back", NO_INPUT)
    return [_rollout_table(artifact, parent.file(ROLLOUTS), rewards, shown)]


def _rollout_table(artifact: Artifact, path: Path, rewards: list[dict[str, Any]], shown: int) -> Table:
    names = source_names(artifact)
    rows = list(_rows(path, list(_ROLLOUT)))
    functions = [str(name) for name in artifact.manifest.metrics.get("functions", [])]
    groups: dict[bytes, int] = {}
    columns = [
        Column("prompt", [groups.setdefault(row["prompt_id"], len(groups)) for row in rows]),
        Column("sample", [row["sample"] for row in rows]),
        Column("finish", [row["finish"] for row in rows]),
        Column("tokens", [row["length"] - row["prompt_length"] for row in rows]),
    ]
    if rewards:
        columns += [
            Column(name, [one[name] for one in rewards[: len(rows)]]) for name in ("reward", "advantage", "kept")
        ]
    columns.append(Column("answer", [(row["output"] or row["error"] or "")[:60] for row in rows], wide=True))
    details = {}
    for number, row in enumerate(_rows(path, [*_ROLLOUT, "prompt", "transcript"], shown)):
        where = place(row, names) if row["source"] is not None else ""
        blocks: list[dict[str, Any]] = [{"title": f"{row['row_id'].hex()[:12]}  {where}", "text": ""}]
        blocks += [{"title": m.get("role", ""), "text": _said(m)} for m in _messages(row["prompt"])]
        turns = _messages(row["transcript"])
        blocks += [{"title": f"{m.get('role', '')} (sampled)", "text": _said(m)} for m in turns]
        if not turns:
            blocks.append({"title": "answer", "text": row["output"] or ""})
        if row["error"]:
            blocks.append({"title": "error", "text": row["error"]})
        if number < len(rewards):
            one = rewards[number]
            scores = dict(zip(functions or map(str, range(len(one["scores"]))), one["scores"], strict=False))
            lines = [*scores.items(), ("reward", one["reward"]), ("advantage", one["advantage"])]
            lines += [(f"{error['function']} failed", error["reason"]) for error in one["errors"]]
            blocks.insert(1, {"title": "rewards", "lines": lines})
        details[str(number)] = blocks
    note, beyond = _beyond(len(rows), shown, f"pass -n {len(rows)}")
    return Table(artifact.path.name, columns, details, len(rows), note, beyond)


def _messages(text: str | None) -> list[dict[str, Any]]:
    """A conversation as it is stored, or nothing."""
    if not text:
        return []
    found = msgspec.json.decode(text)
    return found if isinstance(found, list) and all(isinstance(item, dict) for item in found) else []


def _said(message: dict[str, Any]) -> str:
    """What a message says, and its tool calls as JSON."""
    content = message.get("content")
    text = content if isinstance(content, str) else "" if content is None else msgspec.json.encode(content).decode()
    calls = message.get("tool_calls")
    return f"{text}\n{msgspec.json.format(msgspec.json.encode(calls)).decode()}" if calls else text


def _of_answers(artifact: Artifact, model: str | None, shown: int) -> list[Table]:
    items = list(
        _rows(artifact.file("items.arrow"), ["item_id", "group", "prompt", "output", "finish_reason", "error"])
    )
    scores = {
        row["item_id"]: row for row in _rows(artifact.file("scores.arrow"), ["item_id", "expected", "ok", "reason"])
    }
    # samples of one item are called item.0, item.1, ...
    ids = [item["item_id"] if item["item_id"] in scores else item["item_id"].rpartition(".")[0] for item in items]
    results = [scores.get(item_id, {"expected": [], "ok": None, "reason": ""}) for item_id in ids]
    words = {True: "right", False: "wrong", None: ""}
    columns = [
        Column("item", [item["item_id"] for item in items], wide=True),
        Column("group", [item["group"] for item in items]),
        Column("score", [words[result["ok"]] for result in results]),
        Column("answer", [(item["output"] or item["error"] or "")[:60] for item in items], wide=True),
    ]
    details = {}
    for number, (item, result) in enumerate(zip(items[:shown], results, strict=False)):
        blocks = [{"title": m.get("role", ""), "text": _said(m)} for m in _messages(item["prompt"])]
        blocks.append({"title": "answer", "text": item["output"] or item["error"] or ""})
        blocks.append({"title": "expected", "text": "\n".join(map(str, result["expected"]))})
        blocks.append({"title": "score", "text": f"{words[result['ok']]} {result['reason']}".strip()})
        details[str(number)] = blocks
    note, beyond = _beyond(len(items), shown, f"pass -n {len(items)}")
    return [Table(artifact.path.name, columns, details, len(items), note, beyond)]
