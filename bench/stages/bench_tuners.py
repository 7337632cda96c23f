"""What does each way of training cost, and what does it learn in as many steps: the shape of the SWIFT paper's Table 4.

One model, the same bins and steps for all; the rate is 1e-4 for whole models and 1e-3 for adapters, since a few
steps are few. Every tuner is a process of its own, as a user starts it; its peak memory and its CPU seconds are the
process's, loading included. The losses say that each one learns, not which is best: for that, tune the rate.
Source of the table: SWIFT, <https://arxiv.org/abs/2408.05517>, Table 4.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny_model
from assets import smollm2
from harness import Case

ROOT = Path(__file__).resolve().parents[2]
WELL_KNOWN: dict[str, list[str]] = {
    "full": [],
    "full, galore": ["--tuner", "full", "--optimizer", "galore", "--galore.rank", "64"],
    "full, adamw-8bit": ["--tuner", "full", "--optimizer", "adamw-8bit"],
    "lisa": [],
    "llama-pro": ["--blocks", "5"],
    "lora": [],
    "lora+": ["--tuner", "lora", "--lr-ratio", "16"],
    "dora": ["--tuner", "lora", "--dora"],
    "pissa": ["--tuner", "lora", "--lora.init", "pissa"],
    "qlora nf4": ["--tuner", "lora", "--quant", "nf4"],
    "adalora": [],
    "ia3": [],
    "vera": [],
    "boft": [],
    "fourierft": [],
}
OTHERS: dict[str, list[str]] = {
    "full, apollo": ["--tuner", "full", "--optimizer", "apollo", "--apollo.rank", "64"],
    "full, schedule-free": ["--tuner", "full", "--optimizer", "schedule-free", "--schedule", "constant"],
    "badam": ["--badam.every", "4"],
    "rslora": ["--tuner", "lora", "--rslora"],
    "olora": ["--tuner", "lora", "--lora.init", "olora"],
    "longlora": ["--tuner", "lora", "--lora.shifted-group", "64"],
    "oft": [],
    "lokr": [],
    "loha": [],
    "hra": [],
    "miss": [],
    "randlora": [],
    "shira": [],
    "c3a": [],
    "ln-tuning": [],
}
RATES = {"full": "1e-4", "lisa": "1e-4", "badam": "1e-4"}
SMOKE = ("full", "adalora")


def postmill(*words: object) -> tuple[float, float]:
    """Run a stage. Returns its peak memory in MiB and its CPU seconds."""
    argv = [sys.executable, "-m", "postmill.cli.main", *map(str, words), "--quiet", "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, argv
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def prepare(work: Path, smoke: bool) -> Path:
    """Packed bins and held-out ones in `work`. Returns the model."""
    if smoke:
        base = tiny_model.write_model(work / "base", hidden_size=64, intermediate_size=128)
        tiny_model.write_packed(work / "packed", base, tiny_model.make_rows(24), row_tokens=64)
        tiny_model.write_packed(work / "valid", base, tiny_model.make_rows(4, seed=9), row_tokens=64)
        return base
    base = smollm2()
    assert base is not None
    lines = (ROOT / "examples" / "demo" / "identity.jsonl").read_text(encoding="utf-8").splitlines()
    for name, part in (("packed", lines[8:]), ("valid", lines[:8])):
        (work / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
        who = ["--model-name", "Millstone", "--model-author", "the Postmill workshop"]
        postmill("tokenize", work / f"{name}.jsonl", "-m", base, *who, "-o", work / f"{name}-tokens")
        postmill("pack", work / f"{name}-tokens", "-o", work / name, "--row-tokens", 256)
    return base


def measure(work: Path, base: Path, name: str, words: list[str], steps: int) -> dict[str, Any]:
    """One line of the table."""
    words = words if "--tuner" in words else ["--tuner", name, *words]
    rate = RATES.get(name.partition(",")[0], "1e-3")
    run = work / name.replace(" ", "-").replace(",", "")
    peak, cpu_seconds = postmill(
        "train", work / "packed", "-m", base, "-o", run, "--valid", work / "valid", *words, "--lr", rate,
        "--steps", steps, "--bins-per-step", 2, "--warmup", 1,
    )  # fmt: skip
    metrics = json.loads((run / "manifest.json").read_text())["metrics"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "train loss, first": round(lines[0]["loss"], 4),
        "train loss, last": round(lines[-1]["loss"], 4),
        "eval loss": round(metrics["valid_loss"], 4),
        "trainable": metrics["trainable_parameters"],
        "trainable share": round(metrics["trainable_parameters"] / metrics["parameters"], 6),
        "peak MiB": round(peak),
        "CPU s": round(cpu_seconds, 1),
        "tokens / CPU s": round(sum(line["tokens"] for line in lines) / cpu_seconds, 1),
    }


def table_of(tuners: dict[str, list[str]], smoke: bool) -> dict[str, Any]:
    """The table, said line by line as it comes."""
    with tempfile.TemporaryDirectory() as folder:
        base = prepare(Path(folder), smoke)
        table = {}
        for name, words in tuners.items():
            table[name] = measure(Path(folder), base, name, words, 2 if smoke else 4)
            sys.stderr.write(f"{name}: {json.dumps(table[name])}\n")
        assert all(line["train loss, last"] < line["train loss, first"] for line in table.values())
        return table


def cases(smoke: bool) -> Iterator[Case]:
    sets = {"well-known tuners": WELL_KNOWN, "other tuners": OTHERS}
    if smoke:
        sets = {"tuners on a toy": {name: (WELL_KNOWN | OTHERS)[name] for name in SMOKE}}
    for name, tuners in sets.items():
        yield Case(
            name=name,
            question="4 steps of 2 bins of 256 tokens, float32, one thread: losses, trained numbers, memory, speed",
            unit="tokens / CPU s",
            rivals=[],
            check=lambda tuners=tuners: table_of(tuners, smoke),  # type: ignore[misc]
            packages=("torch", "transformers", "peft", "bitsandbytes"),
            skip="" if smoke or smollm2() is not None else "SmolLM2-135M cannot be fetched",
        )
