"""A task of rows that others have published: asked, recorded, scored."""

from typing import Any

import msgspec
import pyarrow as pa

from postmill.io.digest import digest_bytes
from postmill.io.errors import BAD_DATA, USAGE, ArtifactError, ConfigError, StageError
from postmill.io.schemas import EVAL_CHOICES_V1, EVAL_ITEMS_V1, EVAL_SCORES_V1
from postmill.io.table import TableWriter
from postmill.stages.eval.config import Eval
from postmill.stages.eval.tasks.asked import JOURNAL, Asked, encode_pair, open_asked
from postmill.stages.eval.tasks.code import mark_programs
from postmill.stages.eval.tasks.mark import Mark
from postmill.stages.eval.tasks.metrics import Chosen, mark_choices, mark_text, summary
from postmill.stages.eval.tasks.overlap import check_libraries, corpus, versions_of
from postmill.stages.eval.tasks.prompts import Item, make_items
from postmill.stages.eval.tasks.rows import read_rows
from postmill.stages.eval.tasks.task import Task, load_task, read_task
from postmill.stages.progress import Progress
from postmill.stages.protocol import Inputs, Out, Result
from postmill.stages.shared.engine.protocol import Reply, Request, Sampling
from postmill.stages.shared.sandbox.run import require

ITEMS, SCORES, CHOICES = "items.arrow", "scores.arrow", "choices.arrow"


def run_task(cfg: Eval, inputs: Inputs, out: Out) -> Result:
    """Raises ArtifactError (65) for rows that the task cannot read; ConfigError (2) for what is not there; StageError
    (65) over --max-errors."""
    out.stop.graceful = True
    if cfg.task and inputs["task_file"]:
        raise ConfigError("--task and --task-file both name a task; give one", USAGE)
    path = inputs["task_file"][0].path if inputs["task_file"] else None
    task = load_task(cfg.task) if path is None else read_task(path)
    is_one = bool(inputs["tested"]) != bool(cfg.endpoint.url)
    if not is_one or any(item.kind == "eval" for item in inputs["tested"]) or inputs["before"]:
        raise ConfigError("--task: give one model, adapter or --url; compare two runs with `postmill evaldiff`", USAGE)
    _check(cfg, task)
    _ready(cfg, task)
    splits: dict[str, list[dict[str, Any]]] = {}
    for given in inputs["data"]:
        assert given.path is not None
        splits.setdefault(given.port.partition(".")[2], []).extend(read_rows(given.path))
    fewshot = task.fewshot.count if cfg.fewshot is None else cfg.fewshot
    items = make_items(task, splits, fewshot=fewshot, limit=cfg.limit)
    asked = open_asked(cfg, inputs, out)
    if task.kind == "choice":
        firsts, marks = _ask_choices(task, items, asked)
        replies = [[reply] for reply in firsts]
    else:
        replies = _ask_texts(cfg, task, items, asked)
        marks = _mark_texts(cfg, task, items, replies)
    _write(out, items, replies, marks)
    out.ledger.keep(len(items))
    metrics = _metrics(task, items, marks, fewshot)
    if task.kind == "generate":
        answered = [
            (found[0].text or "", str(item.target)) for item, found in zip(items, replies, strict=True) if _ok(found)
        ]
        texts, targets = [text for text, _ in answered], [target for _, target in answered]
        metrics["metrics"] |= corpus(task.metrics, texts, targets)
        metrics |= {"samples": cfg.samples, "prompt": cfg.prompt}
    Progress.show(_shown(metrics))
    num_errors = sum(not found for found in marks)
    if num_errors > cfg.max_errors * len(items):
        first = next(reply for found in replies for reply in found if reply.error is not None)
        raise StageError(
            f"{num_errors} of {len(items)} rows could not be asked, more than --max-errors {cfg.max_errors:.2%}; the"
            f" first is {first.key}: {first.error}",
            BAD_DATA,
        )
    out.forget(JOURNAL)
    engine = asked.engine
    versions = engine.about.versions | versions_of(task.metrics)
    return Result(metrics=metrics, versions=versions, digests={"weights": engine.loaded.digest})


def _check(cfg: Eval, task: Task) -> None:
    """Raises ConfigError (2) for options that do not go with the task."""
    if task.kind == "choice" and (cfg.prompt == "chat" or cfg.samples > 1):
        raise ConfigError(
            f"--task {task.name}: it compares given texts; it takes no --prompt chat and no --samples", USAGE
        )
    if cfg.samples > 1 and "pass" not in task.metrics:
        raise ConfigError(f"--task {task.name}: --samples is for tasks that run code, like humaneval", USAGE)
    if cfg.samples > 1 and cfg.temperature == 0:
        raise ConfigError("--samples: at --temperature 0 all samples are the same; pass --temperature 0.8", USAGE)


def _ready(cfg: Eval, task: Task) -> None:
    """Raises ConfigError where answers could not be judged here: (77) without the sandbox, (2) without a library."""
    if "pass" in task.metrics:
        require(cfg.sandbox)
    check_libraries(task.metrics)


def _ok(replies: list[Reply]) -> bool:
    return all(reply.error is None for reply in replies)


def _ask_choices(task: Task, items: list[Item], asked: Asked) -> tuple[list[Reply], list[list[Mark]]]:
    """What the model thinks of each choice; a reply stands for an item's first."""
    requests, sizes = [], {}
    for item in items:
        for number, (context, ending) in enumerate(item.pairs):
            key = f"{item.item_id}-{number}"
            ids, sizes[key] = encode_pair(asked, context, ending)
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
                "logp": choice.logp,
                "num_tokens": choice.num_tokens,
                "is_greedy": choice.is_greedy,
            }
            for number, (text, choice) in enumerate(zip(item.choices, chosen, strict=False))
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


def _ask_texts(cfg: Eval, task: Task, items: list[Item], asked: Asked) -> list[list[Reply]]:
    """Answers to each item: one, greedily, or as many samples as are wanted."""
    sampling = Sampling(
        max_new_tokens=task.max_tokens,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        stop_ids=asked.stop_ids,
        stop=tuple(task.stop),
    )
    unasked: dict[str, Reply] = {}
    requests = []
    for item in items:
        for sample in range(cfg.samples):
            key = _key(item, sample, cfg.samples)
            request = asked.request(cfg, item.context, key)
            if isinstance(request, str):
                unasked[key] = Reply(key=key, error=request)
            else:
                requests.append(request)
    replies = asked.all(requests, sampling) | unasked
    keys = [[_key(item, sample, cfg.samples) for sample in range(cfg.samples)] for item in items]
    return [[asked.as_text(replies[key], task.stop) for key in each] for each in keys]


def _key(item: Item, sample: int, samples: int) -> str:
    return item.item_id if samples == 1 else f"{item.item_id}.{sample}"


def _mark_texts(cfg: Eval, task: Task, items: list[Item], replies: list[list[Reply]]) -> list[list[Mark]]:
    """Numbers of each item; none of one that could not be asked. Raises ArtifactError (65) for a row that cannot be
    judged."""
    texts = [[reply.text or "" for reply in item_replies] if _ok(item_replies) else [] for item_replies in replies]
    if "pass" in task.metrics:
        ks = [k for k in (1, 10, 100) if k <= cfg.samples]
        return mark_programs(task, items, texts, ks=ks, kind=cfg.sandbox, time_s=cfg.program_time_s)
    marks = []
    for item, samples in zip(items, texts, strict=True):
        try:
            marks.append(mark_text(task, item, samples[0]) if samples else [])
        except ValueError as error:
            raise ArtifactError(f"{item.item_id}: {error}", BAD_DATA) from None
    return marks


def _write(out: Out, items: list[Item], replies: list[list[Reply]], marks: list[list[Mark]]) -> None:
    rows = [
        {
            "item_id": _key(item, sample, len(samples)),
            "group": item.group,
            "prompt": msgspec.json.encode(item.context).decode(),
            "prompt_ids": [],
            "output": reply.text if not item.choices or reply.error else (item_marks[0].said if item_marks else None),
            "output_ids": reply.ids,
            "finish_reason": None if reply.error else reply.finish,
            "error": reply.error,
        }
        for item, samples, item_marks in zip(items, replies, marks, strict=True)
        for sample, reply in enumerate(samples)
    ]
    _table(out, ITEMS, EVAL_ITEMS_V1, rows)
    scores = [
        {
            "item_id": item.item_id,
            "rule": mark.metric,
            "expected": [item.choices[int(item.target)] if item.choices else str(item.target)],
            "score": mark.value,
            "ok": mark.value == 1.0 if mark.value in {0.0, 1.0} and mark.metric != "mc2" else None,
            "reason": mark.said,
        }
        for item, item_marks in zip(items, marks, strict=True)
        for mark in item_marks
    ]
    _table(out, SCORES, EVAL_SCORES_V1, scores)


def _table(out: Out, name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    writer = TableWriter(out.dir / name, schema)
    writer.write(pa.RecordBatch.from_pylist(rows, schema=schema))
    writer.close()


def _metrics(task: Task, items: list[Item], marks: list[list[Mark]], fewshot: int) -> dict[str, Any]:
    prompts = digest_bytes("\0".join(f"{item.context}\0{item.pairs}" for item in items).encode())
    groups = sorted({item.group for item in items})
    summary: dict[str, Any] = {
        "task": task.name,
        "task_version": task.version,
        "fewshot": fewshot,
        "prompts": prompts,
        "num_items": len(items),
        "num_errors": sum(not each for each in marks),
        "metrics": _summaries(marks),
    }
    if len(groups) > 1:
        summary["groups"] = {
            group: _summaries([each for item, each in zip(items, marks, strict=True) if item.group == group])
            for group in groups
        }
    return summary


def _summaries(marks: list[list[Mark]]) -> dict[str, Any]:
    names = list(dict.fromkeys(mark.metric for found in marks for mark in found))
    every = [mark for found in marks for mark in found]
    return {
        name: summary([value for mark in every if mark.metric == name for value in mark.parts or [mark.value]])
        for name in names
    }


def _shown(metrics: dict[str, Any]) -> str:
    parts = []
    for name, values in metrics["metrics"].items():
        error = "" if values["stderr"] is None else f" ± {values['stderr']:.4f}"
        parts.append(f"{name} {values['value']:.4f}{error}")
    return (
        f"{metrics['task']} {metrics['fewshot']}-shot, {metrics['num_items']} rows: {', '.join(parts) or 'no numbers'}"
    )
