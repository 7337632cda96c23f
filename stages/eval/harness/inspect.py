"""Inspect (<https://inspect.aisi.org.uk>): conversations by /v1/chat/completions, with tools where its tasks have
them."""

import json
import os
from typing import Any

from postmill.stages.eval.harness.harness import Job, Sample, conversation, number, plain, texts

_PROVIDER = "postmill"
"""Its name for our server: it reads the address and the key of a provider from variables of that name."""


def command(job: Job) -> list[str]:
    """Its command line."""
    cfg = job.cfg
    # it takes no file by its whole path
    tasks = [os.path.relpath(name) if name.startswith("/") else name for name in job.tasks]
    argv = ["-m", "inspect_ai", "eval", *tasks, "--model", f"openai-api/{_PROVIDER}/{job.model}"]
    argv += ["--log-dir", str(job.folder / "logs"), "--log-format", "json", "--display", "none"]
    argv += ["--max-tokens", str(cfg.max_new_tokens), "--temperature", str(cfg.temperature), "--seed", str(cfg.seed)]
    argv += ["--max-connections", str(cfg.batch_size), "--no-fail-on-error"]
    argv += ["--limit", str(cfg.limit)] if cfg.limit else []
    return argv


def env(job: Job) -> dict[str, str]:
    """Where to ask, and with which key."""
    prefix = _PROVIDER.upper()
    return {f"{prefix}_BASE_URL": f"{job.url}/v1", f"{prefix}_API_KEY": job.key}


def read(job: Job) -> list[Sample]:
    """From its logs as JSON, the last one of each task."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted((job.folder / "logs").glob("*.json")):
        log = json.loads(path.read_text(encoding="utf-8"))
        newest[log["eval"]["task"]] = log
    return [_sample(task, row) for task, log in sorted(newest.items()) for row in log.get("samples") or []]


def _sample(task: str, row: dict[str, Any]) -> Sample:
    asked = row["input"] if isinstance(row["input"], list) else [{"role": "user", "content": row["input"]}]
    choices = (row.get("output") or {}).get("choices") or []
    error = (row.get("error") or {}).get("message")
    scores: dict[str, float] = {}
    for name, score in (row.get("scores") or {}).items():
        values = score["value"] if isinstance(score["value"], dict) else {"": score["value"]}
        for part, value in values.items():
            found = number(value)
            if found is not None:
                scores[f"{name},{part}" if part else name] = found
    answers = [str(score["answer"]) for score in (row.get("scores") or {}).values() if score.get("answer") is not None]
    repeat = "" if row.get("epoch", 1) == 1 else f".{row['epoch'] - 1}"
    return Sample(
        task=task,
        item_id=f"{task}-{row['id']}{repeat}",
        prompt=conversation(asked),
        output=plain(choices[0]["message"].get("content")) if choices and error is None else None,
        finish={"max_tokens": "length"}.get(choices[0].get("stop_reason"), "stop") if choices else None,
        error=error if error is not None or choices else "it was not asked",
        expected=texts(row.get("target")),
        scores={} if error is not None else scores,
        said="; ".join(answers),
    )
