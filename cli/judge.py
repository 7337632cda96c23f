"""`postmill judge`: a model behind a URL compares two evals' answers, or marks those of one."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.stage_command import share
from postmill.cli.tool import Args, need, open_artifact, parse
from postmill.io.errors import BAD_DATA, MISMATCH, NO_INPUT, ArtifactError, ConfigError, StageError
from postmill.io.manifest import Artifact

USAGE = """
Let a model behind a URL judge answers: of two evals, which is better; of one, a mark from 1 to 10.

usage: postmill judge AFTER --url URL [--before EVAL] [--rubric FILE] [-o FILE] [options]

example:
  postmill judge tuned-answers/ --before base-answers/ --url http://127.0.0.1:8000 -o verdicts.jsonl

  --before       the eval to compare with; every pair is shown in both orders, and a verdict that turns is a tie
  --rubric       file with a few sentences on what counts, in place of: right, does what was asked, clear
  --url          server with OpenAI's API, the URL before /v1
  --url-model    name of the judge there (default: the first that the server lists)
  --key-file     file whose first line is the key for the server
  --concurrency  requests under way at a time (default: 8)
  --max-tokens   longest reply of the judge (default: 512)
  --max-errors   exit 65 if a larger share of the items has no verdict, like 5% or 0.05 (default: 0.1)
  -o             verdicts and replies, a line of JSON an item
  --json         print one object
"""
_VALUED = (
    *("--before", "--rubric", "--url", "--url-model", "--key-file", "--concurrency", "--max-tokens", "--max-errors"),
    "-o",
)


def answers(artifact: Artifact) -> dict[str, tuple[str, str]]:
    """Conversation and answer of each item that was answered. Raises ArtifactError (78) for what is no eval."""
    from postmill.io.schemas import EVAL_ITEMS_V1
    from postmill.io.table import TableReader

    if artifact.manifest.stage != "eval":
        raise ArtifactError(f"{artifact.path}: made by {artifact.manifest.stage}, expected an eval", MISMATCH)
    table = TableReader(artifact.file("items.arrow"), EVAL_ITEMS_V1)
    rows = [row for batch in table for row in batch.select(["item_id", "prompt", "output"]).to_pylist()]
    return {row["item_id"]: (_said(row["prompt"]), row["output"]) for row in rows if row["output"] is not None}


def _said(prompt: str) -> str:
    """A conversation, or a task's text, as the judge reads it."""
    decoded = msgspec.json.decode(prompt)
    if isinstance(decoded, str):
        return decoded
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in decoded)


def _number(args: Args, name: str, default: str) -> int:
    text = args.options.get(name, default)
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"{name} {text}: expected a whole number above 0")
    return int(text)


def ask(prompts: Mapping[str, str], args: Args) -> dict[str, str]:
    """The judge's reply to each; "" to what the server refuses. Raises StageError (69)."""
    from postmill.stages.shared.engine.endpoint import Endpoint
    from postmill.stages.shared.engine.protocol import Request, Sampling
    from postmill.stages.shared.engine.url import UrlEngine

    try:
        endpoint = Endpoint(
            url=args.options["--url"],
            url_model=args.options.get("--url-model", ""),
            key_file=args.options.get("--key-file", ""),
        )
    except ValueError as error:
        raise ConfigError(f"--url: {error}") from None
    engine = UrlEngine(endpoint, concurrency=_number(args, "--concurrency", "8"))
    sampling = Sampling(max_new_tokens=_number(args, "--max-tokens", "512"), temperature=0.0)
    requests = [
        Request(key=key, prompt_ids=[], seed=0, messages=[{"role": "user", "content": text}])
        for key, text in prompts.items()
    ]
    replies: dict[str, str] = {}
    for batch in engine.batches(requests):
        replies |= {reply.key: reply.text or "" for reply in engine.answer(batch, sampling)}
    return replies


def run(argv: list[str]) -> int:
    """0. Raises StageError (65) over --max-errors."""
    args = parse(argv, USAGE, ("--json",), _VALUED)
    if args is None:
        return 0
    need(args, 1, 1, USAGE)
    if "--url" not in args.options:
        raise ConfigError("judge: --url is missing; it names the server that judges")
    most = share("--max-errors", args.options.get("--max-errors", "0.1"))
    rubric = _rubric(args)
    after = answers(open_artifact(args.words[0]))
    before = answers(open_artifact(args.options["--before"])) if "--before" in args.options else None
    rows, summary = _marks(after, rubric, args) if before is None else _pairs(after, before, rubric, args)
    if "-o" in args.options:
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        Path(args.options["-o"]).write_bytes(lines)
    text = msgspec.json.encode(summary).decode() if args.has("--json") else _told(summary)
    sys.stdout.write(text + "\n")
    if summary["unjudged"] > most * summary["items"]:
        raise StageError(
            f"{summary['unjudged']} of {summary['items']} items have no verdict, more than --max-errors {most:.2%};"
            " look at the replies with -o",
            BAD_DATA,
        )
    return 0


def _rubric(args: Args) -> str:
    from postmill.stages.shared.judging import RUBRIC

    if "--rubric" not in args.options:
        return RUBRIC
    path = Path(args.options["--rubric"])
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", NO_INPUT)
    return path.read_text(encoding="utf-8").strip()


Rows = list[Any]
Summary = dict[str, Any]


def _pairs(
    after: dict[str, tuple[str, str]], before: dict[str, tuple[str, str]], rubric: str, args: Args
) -> tuple[Rows, Summary]:
    """Raises ArtifactError (78) for evals without a question in common."""
    from postmill.stages.eval.verdicts import summarize_pairs
    from postmill.stages.shared.judging import ask_for_verdict, combine

    shared = [item for item in after if item in before and after[item][0] == before[item][0]]
    if not shared:
        raise ArtifactError("judge: the two evals answer no question in common", MISMATCH)
    prompts = {}
    for item in shared:
        conversation, new = after[item]
        old = before[item][1]
        for order, (first, second) in enumerate(((new, old), (old, new))):
            prompts[f"{item}#{order}"] = ask_for_verdict(conversation, first, second, rubric)
    replies = ask(prompts, args)
    pairs = [combine(item, [replies[f"{item}#{order}"] for order in (0, 1)]) for item in shared]
    return list(pairs), summarize_pairs(pairs)


def _marks(after: dict[str, tuple[str, str]], rubric: str, args: Args) -> tuple[Rows, Summary]:
    from postmill.stages.eval.verdicts import summarize_marks
    from postmill.stages.shared.judging import ask_for_mark, read_mark

    prompts = {item: ask_for_mark(conversation, answer, rubric) for item, (conversation, answer) in after.items()}
    replies = ask(prompts, args)
    scores = [read_mark(replies[item]) for item in prompts]
    rows = [
        {"item_id": item, "score": score, "reply": replies[item]} for item, score in zip(prompts, scores, strict=True)
    ]
    return rows, summarize_marks(scores)


def _told(summary: Summary) -> str:
    if "wins" not in summary:
        mean = "none" if summary["mean_score"] is None else f"{summary['mean_score']:.2f} of 10"
        return f"{summary['items']} answers, mean mark {mean}; {summary['unjudged']} without a mark"
    rate = "" if summary["win_rate"] is None else f", {summary['win_rate']:.1%} of wins with ties as halves"
    return (
        f"{summary['items']} pairs: {summary['wins']} better, {summary['losses']} worse, {summary['ties']} ties"
        f" ({summary['swapped']} turned with the order), {summary['unjudged']} without a verdict{rate};"
        f" p {summary['p']:.4f}"
    )
