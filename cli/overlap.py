"""`postmill overlap`: were the items of a benchmark among what was trained on?"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from postmill.cli.stage_command import share
from postmill.cli.tool import input_paths, need, open_artifact, parse
from postmill.io.errors import BAD_DATA, FAILED, MISMATCH, NO_INPUT, ArtifactError, ConfigError
from postmill.io.manifest import MANIFEST, Artifact

if TYPE_CHECKING:
    from postmill.stages.eval.contamination import Overlap

USAGE = """
Look for the items of a benchmark in training data: runs of 13 words that both have.

usage: postmill overlap ITEMS TRAINED... [--words N] [--over SHARE] [--eval EVAL] [options]

example:
  postmill overlap gsm8k/test.jsonl chats.jsonl tokens/ --eval answers/

  ITEMS         rows of the benchmark: jsonl, json, csv or parquet; every text of a row is looked for by itself
  TRAINED       training data: files of rows, or tokens artifacts, which are read back with their tokenizer
  --words       words of a run (default: 13); a shorter text of at least 8 words is looked for whole
  --over        an item is called seen if a larger share of its words lies in such runs (default: 0.5)
  --eval        the task's numbers from this eval, with and without the items that were seen
  --fail-over   exit 1 if a larger share of the items was seen
  -m            model with the tokenizer of tokens (default: the one they were made with, where it was)
  --json        print one object
"""
_SHOWN = 20
_BATCH = 1024


def trained_texts(word: str, model: str | None) -> Iterator[tuple[str, str]]:
    """(text, place) of training data. Raises ArtifactError (65, 66, 78)."""
    from postmill.stages.eval.contamination import texts_of
    from postmill.stages.eval.tasks.rows import read_rows

    path = Path(word)
    if not path.exists():
        raise ArtifactError(f"{word}: no such file or artifact", NO_INPUT)
    if (path / MANIFEST).is_file():
        yield from _of_tokens(open_artifact(word), model)
        return
    if path.is_dir():
        raise ArtifactError(
            f"{word}: a folder without {MANIFEST}; expected a file of rows or a tokens artifact", BAD_DATA
        )
    if path.suffix.lower() == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = msgspec.json.decode(line) if line.strip() else None
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise ArtifactError(f"{path}:{number}: {error}", BAD_DATA) from None
                for text in texts_of(row):
                    yield text, f"{path}:{number}"
        return
    for number, row in enumerate(read_rows(path), 1):
        for text in texts_of({name: value for name, value in row.items() if name != "subject"}):
            yield text, f"{path}: row {number}"


def _of_tokens(artifact: Artifact, model: str | None) -> Iterator[tuple[str, str]]:
    from tokenizers import Tokenizer

    from postmill.io.model_folder import tokenizer_digest
    from postmill.io.table import TableReader
    from postmill.stages.shared.model_reference import find_model

    if artifact.manifest.kind != "tokens":
        raise ArtifactError(f"{artifact.path}: holds {artifact.manifest.kind}, expected tokens", MISMATCH)
    wanted = artifact.manifest.digests.get("tokenizer")
    places = [path for entry, path in input_paths(artifact) if entry.port == "model" and path]
    if model:
        places = [find_model(model, tokenizer_only=True).path]
    fitting = [path for path in places if path.is_dir() and wanted in {None, tokenizer_digest(path)}]
    if not fitting:
        why = "not the tokenizer that it was made with" if model else "its tokenizer is no longer where it was"
        raise ArtifactError(f"{artifact.path}: {why}; pass -m MODEL", MISMATCH if model else NO_INPUT)
    tokenizer = Tokenizer.from_file(str(fitting[0] / "tokenizer.json"))
    number = 0
    for batch in TableReader(artifact.file("tokens.arrow")):
        for start in range(0, batch.num_rows, _BATCH):
            ids = batch.column("input_ids").slice(start, _BATCH).to_pylist()
            for text in tokenizer.decode_batch(ids):
                yield text, f"{artifact.path}: row {number}"
                number += 1


def numbers(evaluated: Artifact, seen: set[int]) -> dict[str, dict[str, Any]]:
    """The mean of each number of an eval of a task: of all items, and of those that were not seen.

    Raises ArtifactError (78) for an eval that did not ask a task's rows.
    """
    from postmill.io.schemas import EVAL_SCORES_V1
    from postmill.io.table import TableReader

    if evaluated.manifest.stage != "eval" or "task" not in evaluated.manifest.metrics:
        raise ArtifactError(f"{evaluated.path}: expected an eval of a task", MISMATCH)
    values: dict[str, list[tuple[int, float]]] = {}
    for batch in TableReader(evaluated.file("scores.arrow"), EVAL_SCORES_V1):
        for row in batch.select(["item_id", "rule", "score"]).to_pylist():
            if row["score"] is not None:
                values.setdefault(row["rule"], []).append((int(row["item_id"].rpartition("-")[2]), row["score"]))
    by_rule = {}
    for name, pairs in values.items():
        clean = [value for number, value in pairs if number not in seen]
        by_rule[name] = {
            "all": sum(value for _, value in pairs) / len(pairs),
            "unseen": sum(clean) / len(clean) if clean else None,
            "num_unseen": len(clean),
            "num_all": len(pairs),
        }
    return by_rule


def run(argv: list[str]) -> int:
    """0, or 1 where --fail-over finds too much."""
    from postmill.stages.eval.contamination import SHORTEST, Finder, texts_of
    from postmill.stages.eval.tasks.rows import read_rows

    args = parse(argv, USAGE, ("--json",), ("--words", "--over", "--eval", "--fail-over", "-m"))
    if args is None:
        return 0
    need(args, 2, 10_000, USAGE)
    size = args.options.get("--words", "13")
    if not size.isdecimal() or int(size) < SHORTEST:
        raise ConfigError(f"--words {size}: expected a number from {SHORTEST} on")
    over, most = (
        share(name, args.options.get(name, usual)) for name, usual in (("--over", "0.5"), ("--fail-over", "1"))
    )
    items = Path(args.words[0])
    if not items.is_file():
        raise ArtifactError(f"{items}: no such file", NO_INPUT)
    finder = Finder((texts_of({k: v for k, v in row.items() if k != "subject"}) for row in read_rows(items)), int(size))
    for word in args.words[1:]:
        for text, place in trained_texts(word, args.options.get("-m")):
            finder.search(text, place)
    overlaps = finder.overlaps()
    judged = [each for each in overlaps if each.share is not None]
    seen = [each for each in judged if (each.share or 0.0) > over]
    summary: dict[str, Any] = {
        "items": len(overlaps),
        "judged": len(judged),
        "with_a_run": sum(each.longest > 0 for each in judged),
        "seen": len(seen),
        "words": int(size),
        "over": over,
    }
    if "--eval" in args.options:
        summary["numbers"] = numbers(open_artifact(args.options["--eval"]), {each.number for each in seen})
    if args.has("--json"):
        sys.stdout.write(msgspec.json.encode(summary | {"overlaps": overlaps}).decode() + "\n")
    else:
        sys.stdout.write("".join(line + "\n" for line in _lines(summary, judged)))
    return FAILED if judged and len(seen) > most * len(judged) else 0


def _lines(summary: dict[str, Any], judged: "list[Overlap]") -> list[str]:
    lines = [
        f"{summary['items']} items, {summary['judged']} long enough to tell: {summary['with_a_run']} share a run of"
        f" {summary['words']} words with training data, {summary['seen']} more than {summary['over']:.0%} of it"
    ]
    for name, each in summary.get("numbers", {}).items():
        unseen = "none left" if each["unseen"] is None else f"{each['unseen']:.4f}"
        lines.append(f"{name}: {each['all']:.4f} of {each['num_all']}; without those {unseen} of {each['num_unseen']}")
    worst = sorted((each for each in judged if each.longest), key=lambda each: -(each.share or 0.0))
    for each in worst[:_SHOWN]:
        lines.append(f"  row {each.number + 1}: {each.share:.0%}, longest {each.longest} words, first at {each.place}")
    if len(worst) > _SHOWN:
        lines.append(f"  and {len(worst) - _SHOWN} more; --json has all")
    return lines
