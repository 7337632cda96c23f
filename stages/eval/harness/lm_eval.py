"""lm-eval (<https://github.com/EleutherAI/lm-evaluation-harness>): log-likelihoods and texts by /v1/completions.

Raw prompts go as token ids of the server's tokenizer; `--prompt chat` sends messages, which lm-eval does for tasks of
texts alone.
"""

import json
from typing import Any

from postmill.stages.eval.harness.harness import Job, Sample, lines, number, texts


def command(job: Job) -> list[str]:
    """Its command line."""
    cfg = job.cfg
    is_chat = cfg.prompt == "chat"
    route = "chat/completions" if is_chat else "completions"
    given = {
        "model": job.model,
        "base_url": f"{job.url}/v1/{route}",
        "num_concurrent": cfg.batch_size,
        "max_retries": cfg.endpoint.tries,
        "timeout": int(cfg.endpoint.timeout_s),
    }
    given |= {} if is_chat else {"tokenizer_backend": "remote"}
    argv = ["-m", "lm_eval", "run", "--model", "local-chat-completions" if is_chat else "local-completions"]
    argv += ["--model_args", ",".join(f"{name}={value}" for name, value in given.items())]
    argv += ["--tasks", ",".join(job.tasks), "--log_samples", "--output_path", str(job.folder / "logs")]
    argv += ["--use_cache", str(job.folder / "cache")]
    argv += ["--apply_chat_template"] if is_chat else []
    argv += ["--limit", str(cfg.limit)] if cfg.limit else []
    argv += ["--num_fewshot", str(cfg.fewshot)] if cfg.fewshot is not None else []
    argv += ["--gen_kwargs", _sampling(job)] if cfg.temperature else []
    return argv


def _sampling(job: Job) -> str:
    cfg = job.cfg
    given = {"do_sample": True, "temperature": cfg.temperature, "top_p": cfg.top_p, "seed": cfg.seed}
    return ",".join(f"{name}={value}" for name, value in given.items())


def env(job: Job) -> dict[str, str]:
    """Its key."""
    return {"OPENAI_API_KEY": job.key}


def read(job: Job) -> list[Sample]:
    """From `samples_TASK_DATE.jsonl`, the last date of each task. A document has a line for each way to extract."""
    newest: dict[str, Any] = {}
    for path in sorted((job.folder / "logs").rglob("samples_*.jsonl")):
        newest[path.stem.removeprefix("samples_").rpartition("_")[0]] = path
    return [sample for task, path in sorted(newest.items()) for sample in _samples(task, lines(path))]


def _samples(task: str, rows: list[dict[str, Any]]) -> list[Sample]:
    documents: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["doc_id"]):
        documents.setdefault(row["doc_id"], []).append(row)
    return [_sample(task, doc_id, found) for doc_id, found in documents.items()]


def _sample(task: str, doc_id: int, rows: list[dict[str, Any]]) -> Sample:
    first = rows[0]
    asked = [list(each.values()) for each in first["arguments"].values()]
    is_text = isinstance(asked[0][1], dict)
    scores: dict[str, float] = {}
    for row in rows:
        suffix = "" if row["filter"] == "none" else f",{row['filter']}"
        for metric in row["metrics"]:
            value = number(row[metric])
            if value is not None:
                scores[metric + suffix] = value
    heard = first["resps"]
    return Sample(
        task=task,
        item_id=f"{task}-{doc_id}",
        prompt=json.dumps(asked[0][0] if is_text else [[*pair] for pair in asked], ensure_ascii=False),
        output=heard[0][0] if is_text else json.dumps(heard, ensure_ascii=False),
        expected=texts(first["target"]),
        scores=scores,
        said="; ".join(str(row["filtered_resps"][0]) for row in rows) if is_text else "",
    )
