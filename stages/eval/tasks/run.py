"""A task of rows that others have published: asked, recorded, scored."""

from typing import Any

import msgspec
import pyarrow as pa

from postmill.io.digest import digest_bytes
from postmill.io.errors import BAD_DATA, USAGE, ConfigError, StageError
from postmill.io.schemas import EVAL_CHOICES_V1, EVAL_ITEMS_V1, EVAL_SCORES_V1
from postmill.io.table import TableWriter
from postmill.stages.eval.config import Eval
from postmill.stages.eval.tasks.metrics import Chosen, Mark, mark_choices, mark_text, summary
from postmill.stages.eval.tasks.prompts import Item, make_items
from postmill.stages.eval.tasks.rows import read_rows
from postmill.stages.eval.tasks.task import Task, load_task, read_task
from postmill.stages.progress import Progress
from postmill.stages.protocol import Inputs, Out, Result
from postmill.stages.shared.engine.ask import ask_all
from postmill.stages.shared.engine.local import LocalEngine
from postmill.stages.shared.engine.protocol import Reply, Request, Sampling
from postmill.stages.shared.engine.text import Speaker

ITEMS, SCORES, CHOICES = "items.arrow", "scores.arrow", "choices.arrow"
_JOURNAL = "replies.jsonl"


def run_task(cfg: Eval, inputs: Inputs, out: Out) -> Result:
    """Raises ArtifactError (65) for rows that the task cannot read; ConfigError (2) for what is not there; StageError
    (65) over --max-errors."""
    out.stop.graceful = True
    if cfg.task and inputs["task_file"]:
        raise ConfigError("--task and --task-file both name a task; give one", USAGE)
    path = inputs["task_file"][0].path if inputs["task_file"] else None
    task = load_task(cfg.task) if path is None else read_task(path)
    if not inputs["tested"] or inputs["tested"][0].kind == "eval" or cfg.endpoint.url or inputs["before"]:
        raise ConfigError("--task: give one model or adapter; compare two runs with `postmill evaldiff`", USAGE)
    splits: dict[str, list[dict[str, Any]]] = {}
    for given in inputs["data"]:
        assert given.path is not None
        splits.setdefault(given.port.partition(".")[2], []).extend(read_rows(given.path))
    fewshot = task.fewshot.count if cfg.fewshot is None else cfg.fewshot
    items = make_items(task, splits, fewshot=fewshot, limit=cfg.limit)
    folders = [item.path for port in ("model", "tested") for item in inputs[port] if item.path is not None]
    engine = LocalEngine(folders, dtype=cfg.dtype, batch_size=cfg.batch_size, threads=out.threads)
    speaker = Speaker(folders)
    asked = _Asked(engine, speaker, out)
    if task.kind == "choice":
        replies, marks = _ask_choices(task, items, asked)
    else:
        replies, marks = _ask_texts(task, items, asked)
    _write(out, items, replies, marks)
    out.ledger.keep(len(items))
    metrics = _metrics(task, items, marks, fewshot)
    Progress.show(_shown(metrics))
    num_errors = sum(not found for found in marks)
    if num_errors > cfg.max_errors * len(items):
        first = next(reply for reply in replies if reply.error is not None)
        raise StageError(
            f"{num_errors} of {len(items)} rows could not be asked, more than --max-errors {cfg.max_errors:.2%}; the"
            f" first is {first.key}: {first.error}",
            BAD_DATA,
        )
    (out.work / _JOURNAL).unlink(missing_ok=True)
    if out.work.is_dir() and not any(out.work.iterdir()):
        out.work.rmdir()
    return Result(metrics=metrics, versions=engine.about.versions, digests={"weights": engine.loaded.digest})


class _Asked(msgspec.Struct):
    """Who is asked, and where answers are kept."""

    engine: LocalEngine
    speaker: Speaker
    out: Out

    def all(self, requests: list[Request], sampling: Sampling) -> dict[str, Reply]:
        """Replies by key."""
        return ask_all(self.engine, requests, sampling, out=self.out, name=_JOURNAL, what="answers")


def encode_pair(speaker: Speaker, context: str, ending: str) -> tuple[list[int], int]:
    """Tokens of both, and how many of them are the context's.

    Spaces at the end of the context move to what follows, so that words keep their tokens.
    """
    bare = context.rstrip()
    whole = speaker.ids(bare + context[len(bare) :] + ending)
    size = len(speaker.ids(bare)) if bare else 0
    if size == 0:  # something has to stand before the first token
        first = speaker.first_id
        return ([first, *whole], 1) if first is not None and whole[:1] != [first] else (whole, 1)
    return whole, size


def _ask_choices(task: Task, items: list[Item], asked: _Asked) -> tuple[list[Reply], list[list[Mark]]]:
    """What the model thinks of each choice; a reply stands for an item's first."""
    requests, sizes = [], {}
    for item in items:
        for number, (context, ending) in enumerate(item.pairs):
            key = f"{item.item_id}-{number}"
            ids, sizes[key] = encode_pair(asked.speaker, context, ending)
            requests.append(Request(key=key, prompt_ids=ids, seed=0, prompt_logprobs=1))
    replies = asked.all(requests, Sampling(max_new_tokens=0))
    firsts, marks, rows = [], [], []
    for item in items:
        keys = [f"{item.item_id}-{number}" for number in range(len(item.pairs))]
        failed = next((replies[key] for key in keys if replies[key].error is not None), None)
        firsts.append(failed or replies[keys[0]])
        chosen = [] if failed else [_chosen(replies[key], sizes[key]) for key in keys]
        marks.append(mark_choices(task, item, chosen) if chosen else [])
        rows += [
            {
                "item_id": item.item_id,
                "choice": number,
                "text": text,
                "logp": found.logp,
                "num_tokens": found.num_tokens,
                "is_greedy": found.is_greedy,
            }
            for number, (text, found) in enumerate(zip(item.choices, chosen, strict=False))
        ]
    _table(asked.out, CHOICES, EVAL_CHOICES_V1, rows)
    return firsts, marks


def _chosen(reply: Reply, size: int) -> Chosen:
    tokens = reply.prompt[size:]
    return Chosen(
        logp=sum(token.raw_logp or 0.0 for token in tokens),
        num_tokens=len(tokens),
        is_greedy=all(token.raw_logp == token.top[0][1] for token in tokens),
    )


def _ask_texts(task: Task, items: list[Item], asked: _Asked) -> tuple[list[Reply], list[list[Mark]]]:
    """Greedy answers."""
    requests = [Request(key=item.item_id, prompt_ids=asked.speaker.ids(item.context), seed=0) for item in items]
    stop_ids = asked.engine.about.stop_ids or asked.speaker.eos_ids
    sampling = Sampling(max_new_tokens=task.max_tokens, temperature=0, stop_ids=stop_ids, stop=tuple(task.stop))
    found = asked.all(requests, sampling)
    replies, marks = [], []
    for item in items:
        reply = found[item.item_id]
        if reply.error is None:
            ends = reply.finish == "stop" and reply.ids[-1] in stop_ids
            text = asked.speaker.text(reply.ids, is_stopped=ends)
            for stop in task.stop:
                text = text.split(stop)[0]
            reply = msgspec.structs.replace(reply, text=text)
        replies.append(reply)
        marks.append(mark_text(task, item, reply.text or "") if reply.error is None else [])
    return replies, marks


def _write(out: Out, items: list[Item], replies: list[Reply], marks: list[list[Mark]]) -> None:
    rows = [
        {
            "item_id": item.item_id,
            "group": item.group,
            "prompt": msgspec.json.encode(item.context).decode(),
            "prompt_ids": [],
            "output": reply.text if not item.choices or reply.error else (found[0].said if found else None),
            "output_ids": reply.ids,
            "finish_reason": None if reply.error else reply.finish,
            "error": reply.error,
        }
        for item, reply, found in zip(items, replies, marks, strict=True)
    ]
    _table(out, ITEMS, EVAL_ITEMS_V1, rows)
    scores = [
        {
            "item_id": item.item_id,
            "rule": mark.metric,
            "expected": [item.choices[int(item.target)] if item.choices else str(item.target)],
            "score": mark.value,
            "ok": None if mark.metric == "mc2" else mark.value == 1.0,
            "reason": mark.said,
        }
        for item, found in zip(items, marks, strict=True)
        for mark in found
    ]
    _table(out, SCORES, EVAL_SCORES_V1, scores)


def _table(out: Out, name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    writer = TableWriter(out.dir / name, schema)
    writer.write(pa.RecordBatch.from_pylist(rows, schema=schema))
    writer.close()


def _metrics(task: Task, items: list[Item], marks: list[list[Mark]], fewshot: int) -> dict[str, Any]:
    prompts = digest_bytes("\0".join(f"{item.context}\0{item.pairs}" for item in items).encode())
    groups = sorted({item.group for item in items})
    found: dict[str, Any] = {
        "task": task.name,
        "task_version": task.version,
        "fewshot": fewshot,
        "prompts": prompts,
        "num_items": len(items),
        "num_errors": sum(not each for each in marks),
        "metrics": _summaries(marks),
    }
    if len(groups) > 1:
        found["groups"] = {
            group: _summaries([each for item, each in zip(items, marks, strict=True) if item.group == group])
            for group in groups
        }
    return found


def _summaries(marks: list[list[Mark]]) -> dict[str, Any]:
    names = list(dict.fromkeys(mark.metric for found in marks for mark in found))
    return {name: summary([mark.value for found in marks for mark in found if mark.metric == name]) for name in names}


def _shown(metrics: dict[str, Any]) -> str:
    parts = []
    for name, found in metrics["metrics"].items():
        error = "" if found["stderr"] is None else f" ± {found['stderr']:.4f}"
        parts.append(f"{name} {found['value']:.4f}{error}")
    return (
        f"{metrics['task']} {metrics['fewshot']}-shot, {metrics['num_items']} rows: {', '.join(parts) or 'no numbers'}"
    )
