"""Does each objective learn what it is for? `python bench/learning.py [objective ...] [--steps 6] [--seeds 3]`.

A real model is trained on real rows by the stages a user runs, for a few steps; the number that the objective is for is
measured on rows it did not see, before and after. SmolLM2-135M with LoRA learns from chats, all-MiniLM-L6-v2 (whole)
from labels, pairs of texts and preferences. Rows are LLaMA-Factory's demos (alpaca, DPO, KTO, c4, wiki), the shortest
ones, and sums with right and wrong steps. Each seed draws other first weights and another order. A few steps say that
a loss pulls the right way, not how far it gets.

Results go to `bench/results/learning.jsonl`, a line an objective, and the table to stdout.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from assets import llamafactory_data, minilm, smollm2  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "learning.jsonl"
HELD_OUT = 24
LONGEST = 420
"""Characters of a row."""


class Task(NamedTuple):
    """An objective, what it learns from, and the number that should move."""

    rows: str
    measure: str
    better: int
    """1: higher is better, -1: lower."""
    flags: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    """Roles of scores that it needs: ref, kl, teacher."""
    small: bool = False
    """Whether MiniLM learns it."""


TASKS = {
    "sft": Task("chats", "loss", -1),
    "pretrain": Task("chats", "loss", -1, ("--pretrain.z-loss", "1e-4")),
    "dft": Task("chats", "loss", -1),
    "eaft": Task("chats", "nll", -1),
    "focal": Task("chats", "nll", -1),
    "gkd": Task("chats", "loss", -1, scores=("teacher",)),
    "dpo": Task("pairs", "margin", 1, scores=("ref",)),
    "dpo ipo": Task("pairs", "margin", 1, ("--dpo.loss", "ipo"), ("ref",)),
    "cpo": Task("pairs", "margin", 1),
    "simpo": Task("pairs", "margin", 1),
    "orpo": Task("pairs", "margin", 1),
    "kto": Task("labels", "reward_gap", 1, scores=("ref", "kl")),
    "bco": Task("labels", "reward_gap", 1, ("--kto.loss", "bco"), ("ref",)),
    "rm": Task("pairs", "reward_accuracy", 1, small=True),
    "seq_cls": Task("classes", "accuracy", 1, ("--seq-cls.labels", "3"), small=True),
    "prm": Task("steps", "accuracy", 1, small=True),
    "embedding": Task("texts", "accuracy", 1, small=True),
    "reranker": Task("ranks", "accuracy", 1, ("--reranker.loss", "listwise"), small=True),
}


def chat(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def rows_of(kind: str, data: Path) -> list[dict[str, Any]]:
    """All rows of a kind, short ones only, in an order of their own."""

    def read(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((data / name).read_text("utf-8"))
        return found

    draw = random.Random(7)
    alpaca = [(f"{r['instruction']}\n{r['input']}".strip(), r["output"]) for r in read("alpaca_en_demo.json")]
    alpaca = [pair for pair in alpaca if sum(map(len, pair)) < LONGEST]
    rows: list[dict[str, Any]]
    if kind == "chats":
        rows = [{"messages": chat(*pair)} for pair in alpaca]
    elif kind == "pairs":
        found = [(r["conversations"], r["chosen"]["value"], r["rejected"]["value"]) for r in read("dpo_en_demo.json")]
        rows = [
            {"messages": chat(turns[0]["value"], good), "rejected_response": bad}
            for turns, good, bad in found
            if len(turns) == 1 and len(turns[0]["value"]) + max(len(good), len(bad)) < 3 * LONGEST
        ]
    elif kind == "labels":
        rows = [r for r in read("kto_en_demo.json") if sum(len(m["content"]) for m in r["messages"]) < 2 * LONGEST]
    elif kind == "classes":
        web = [json.loads(line)["text"] for line in (data / "c4_demo.jsonl").read_text("utf-8").splitlines()]
        wiki = (data / "wiki_demo.txt").read_text("utf-8").split("\n")
        parts = [[answer for _, answer in alpaca], web, [line for line in wiki if len(line) > 100]]
        rows = [{"text": text[:LONGEST], "label": label} for label, part in enumerate(parts) for text in part[:60]]
    elif kind == "texts":
        rows = [{"query": query, "positive": answer} for query, answer in alpaca]
    elif kind == "ranks":
        answers = [answer for _, answer in alpaca]
        rows = [{"query": q, "positive": [a], "negatives": draw.sample(answers, 3)} for q, a in alpaca]
    else:
        rows = [sum_with_steps(draw) for _ in range(160)]
    draw.shuffle(rows)
    return rows


def sum_with_steps(draw: random.Random) -> dict[str, Any]:
    """A sum in three steps, of which some are wrong by a lot."""
    total, parts, labels = draw.randint(1, 20), [], []
    text = str(total)
    for number in range(3):
        term, is_right = draw.randint(1, 9), draw.random() < 0.5
        text += f" + {term}"
        shown = total + term + (0 if is_right else draw.choice([100, 200, 300]))
        parts.append({"type": "text", "text": f"{total} + {term} = {shown}. ", "loss_scale": 1 + number % 2})
        labels.append(is_right)
        total += term
    return {
        "messages": [{"role": "user", "content": f"{text}?"}, {"role": "assistant", "content": parts}],
        "label": labels,
    }


def postmill(*words: object) -> None:
    argv = [sys.executable, "-m", "postmill.cli.main", *map(str, words), "--quiet", "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)


class Bench:
    """The work of several objectives: rows are packed, and scored, once."""

    def __init__(self, work: Path, steps: int, seeds: int) -> None:
        data, large, small = llamafactory_data(), smollm2(), minilm()
        assert data is not None and large is not None and small is not None, "assets cannot be fetched"
        self._work, self._data, self._large, self._small = work, data, large, small
        self._steps, self._seeds = steps, seeds

    def packed(self, task: Task) -> Path:
        """A folder with `train` and `valid`, packed for the task's model."""
        folder = self._work / f"{task.rows}-{'small' if task.small else 'large'}"
        if folder.exists():
            return folder
        folder.mkdir()
        rows = rows_of(task.rows, self._data)
        use = {"texts": "embed", "ranks": "rank"}.get(task.rows, "train")
        bins = 512 if task.rows in ("pairs", "labels", "ranks") else 256
        for name, part in (("valid", rows[:HELD_OUT]), ("train", rows[HELD_OUT : HELD_OUT + 120])):
            file = folder / f"{name}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")
            base = self._small if task.small else self._large
            postmill("tokenize", file, "-m", base, "-o", folder / f"{name}-tokens", "--for", use, "--max-length", 256)
            postmill("pack", folder / f"{name}-tokens", "-o", folder / name, "--row-tokens", bins)
        return folder

    def scores(self, folder: Path, roles: tuple[str, ...]) -> list[str]:
        """`--scores` of both sets; a teacher is SmolLM2 after a few steps on the training rows."""
        words: list[str] = []
        for role in roles:
            for name, prefix in (("train", ""), ("valid", "valid.")):
                target = folder / f"{role}-{name}"
                if not target.exists():
                    self._score(folder, role, name, target)
                words += ["--scores", f"{prefix}{role}={target}"]
        return words

    def _score(self, folder: Path, role: str, name: str, target: Path) -> None:
        if role == "teacher":
            teacher = folder / "teacher-model"
            if not teacher.exists():
                postmill("train", folder / "train", "-m", self._large, "-o", teacher, *RATES["large"], "--steps", 8)
            extra: list[object] = ["--adapter", teacher, "--top-k", 32]
        else:
            extra = ["--partners"] if role == "kl" else []
        postmill("score", folder / name, "-m", self._large, "-o", target, *extra)

    def measure(self, name: str) -> dict[str, Any]:
        """The held-out number before and after, for each seed."""
        task = TASKS[name]
        folder = self.packed(task)
        base = self._small if task.small else self._large
        words = ["--objective", {"dpo ipo": "dpo", "bco": "kto"}.get(name, name), *task.flags]
        words += [
            *self.scores(folder, task.scores),
            "--valid",
            folder / "valid",
            *RATES["small" if task.small else "large"],
        ]
        start = time.perf_counter()

        def run(target: str, *extra: object) -> float:
            out = folder / f"{name.replace(' ', '-')}-{target}"
            postmill("train", folder / "train", "-m", base, "-o", out, *words, *extra)
            last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
            if task.measure == "margin":
                return float(last["valid_reward_chosen"] - last["valid_reward_rejected"])
            return float(last[f"valid_{task.measure}"])

        steps = self._steps * (4 if task.small else 1)
        before, after = [], []
        for seed in range(self._seeds):
            # a classifier's first weights are drawn from the seed, so that each has a start of its own
            if not before or task.small:
                before.append(run(f"start-{seed}", "--seed", seed, "--steps", 1, "--lr", 1e-12))
            after.append(run(f"run-{seed}", "--seed", seed, "--steps", steps))
        befores = before if len(before) == len(after) else before * len(after)
        moved = sum((b - a) * task.better > 0 for a, b in zip(befores, after, strict=True))
        return {
            "objective": name,
            "model": base.name,
            "measure": task.measure,
            "better": "higher" if task.better > 0 else "lower",
            "before": round(statistics.mean(before), 4),
            "after": [round(value, 4) for value in after],
            "moved": f"{moved} of {len(after)}",
            "steps": steps,
            "seconds": round(time.perf_counter() - start),
        }


RATES: dict[str, tuple[object, ...]] = {
    "large": ("--tuner", "lora", "--lr", 5e-4, "--bins-per-step", 2, "--warmup", 1, "--schedule", "constant"),
    "small": ("--tuner", "full", "--lr", 1e-4, "--bins-per-step", 4, "--warmup", 1, "--schedule", "constant"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("objectives", nargs="*", default=list(TASKS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    sys.stdout.write("| objective | number | before | after, by seed | moved |\n|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), given.steps, given.seeds)
        for name in given.objectives:
            line = bench.measure(name)
            about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": platform.machine()}
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(about | line) + "\n")
            after = ", ".join(map(str, line["after"]))
            sys.stdout.write(f"| `{name}` | {line['measure']} | {line['before']} | {after} | {line['moved']} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
