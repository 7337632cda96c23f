"""EvalScope (<https://github.com/modelscope/evalscope>): conversations by /v1/chat/completions."""

import json
from typing import Any

from postmill.stages.eval.harness.harness import Job, Sample, conversation, lines, number, plain, texts


def command(job: Job) -> list[str]:
    """Its command line. What it has heard before is in its folder, and it does not ask that again."""
    cfg = job.cfg
    sampling = {"max_tokens": cfg.max_new_tokens, "temperature": cfg.temperature, "top_p": cfg.top_p, "seed": cfg.seed}
    argv = ["-m", "evalscope.cli.cli", "eval", "--model", job.model, "--api-url", f"{job.url}/v1"]
    argv += ["--eval-type", "openai_api", "--datasets", *job.tasks, "--generation-config", json.dumps(sampling)]
    argv += ["--work-dir", str(job.folder), "--no-timestamp", "--use-cache", str(job.folder)]
    argv += ["--eval-batch-size", str(cfg.batch_size)]
    argv += ["--limit", str(cfg.limit)] if cfg.limit else []
    return argv


def env(job: Job) -> dict[str, str]:
    """Its key."""
    return {"EVALSCOPE_API_KEY": job.key}


def read(job: Job) -> list[Sample]:
    """From `reviews/MODEL/DATASET_SUBSET.jsonl`."""
    found = []
    for path in sorted((job.folder / "reviews").rglob("*.jsonl")):
        found += [_sample(path.stem, row) for row in sorted(lines(path), key=lambda row: row["index"])]
    return found


def _sample(task: str, row: dict[str, Any]) -> Sample:
    score = row["sample_score"]["score"]
    answers = [message for message in row["messages"] if message.get("role") == "assistant"]
    asked = [message for message in row["messages"] if message.get("role") != "assistant"]
    values = {name: number(value) for name, value in score["value"].items()}
    status = score.get("status", "success")
    return Sample(
        task=task,
        item_id=f"{task}-{row['index']}",
        prompt=conversation(asked),
        output=plain(answers[-1].get("content")) if answers else None,
        error=None if answers and status == "success" else str(score.get("explanation") or status),
        expected=texts(row.get("target")),
        scores={name: value for name, value in values.items() if value is not None},
        said=str(score.get("extracted_prediction") or ""),
    )
