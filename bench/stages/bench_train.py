"""What does a step of weighted SFT cost, end to end, and in how much memory: against ms-swift and TRL?

Full training in float32 on packed rows: chats and tool calls, Qwen3's tokenizer, a random Qwen3 of 31M parameters with
its vocabulary of 151,936. Everyone gets the same bins in the same order, the same first weights, AdamW, learning rate
and threads, and saves the model at the end. Ours with weights (`hermes`) is held against ms-swift's loss_scale, ours
without against TRL, which has none. The first case compares loss curves of 200 steps and keeps no times, so it may run
on a busy machine; in the others rivals take turns in short runs. The clock counts steps after the first two, without
the start of the process; memory is the whole process's peak.

Each rival lives in an environment of its own, with the same torch as ours: `make rivals` makes them.
"""

import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import assets
import numpy as np
from harness import Case, Rival

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent.parent / ".cache" / "rivals"
Facts = dict[str, Any]
LR, SEED = "3e-4", "0"
FULL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
TOY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
KINDS = {"swift": ("ms-swift", "weighted", "its loss_scale"), "trl": ("TRL", "plain", "has no token weights")}


def make_model(folder: Path, tokenizer: Path, size: dict[str, int]) -> None:
    """A Qwen3 with random weights and the real tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, eos_token_id=151_645, **size
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, folder / file)


def make_rows(path: Path, source: Path, *, weighted: bool) -> None:
    """Tool calls and chats, as JSON Lines in one order for everyone; `weighted` answers count 0.3, 1 or 3."""
    with path.open("w", encoding="utf-8") as file:
        for row in json.loads((source / "glaive_toolcall_en_demo.json").read_text("utf-8")):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        for number, row in enumerate(json.loads((source / "alpaca_en_demo.json").read_text("utf-8"))):
            question = {"role": "user", "content": f"{row['instruction']}\n{row['input']}".strip()}
            answer = {"role": "assistant", "content": row["output"]}
            if weighted:
                answer["loss_scale"] = (0.3, 1.0, 3.0)[number % 3]
            file.write(json.dumps({"messages": [question, answer]}, ensure_ascii=False) + "\n")


def postmill(*argv: str | Path) -> list[str]:
    return [sys.executable, "-m", "postmill.cli.main", *map(str, argv)]


def make_packed(work: Path, name: str, loss_scale: str, row_tokens: int) -> None:
    """Tokens with these weights, packed."""
    tokens = work / f"{name}-tokens"
    tokenize = ["tokenize", work / f"{name}.jsonl", "-m", work / "model", "--loss-scale", loss_scale]
    tokenize += ["--max-length", str(row_tokens), "--quiet", "-o", tokens]
    subprocess.run(postmill(*tokenize), check=True, stdout=subprocess.DEVNULL)
    pack = ["pack", tokens, "--row-tokens", str(row_tokens), "--quiet", "-o", work / name]
    subprocess.run(postmill(*pack), check=True, stdout=subprocess.DEVNULL)


def export_bins(packed: Path, path: Path, steps: int) -> Facts:
    """The bins of the first `steps` steps for the rivals; returns what is worth knowing of them."""
    from postmill.io.packed import PackedReader
    from postmill.stages.options import make
    from postmill.stages.train.config import Train
    from postmill.stages.train.plan import Steps

    reader = PackedReader(packed)
    plan = Steps(make(Train, bins_per_step=1, steps=steps, seed=int(SEED)), reader, 1)
    bins = [reader.bin(int(plan[number].bins.item())) for number in range(steps)]
    np.savez(
        path,
        ids=np.concatenate([b.input_ids for b in bins]),
        weights=np.concatenate([b.weights for b in bins]),
        lengths=np.concatenate([np.diff(b.cu_seqlens) for b in bins]),
        num_rows=[len(b.rows) for b in bins],
    )
    weights = np.concatenate([b.weights for b in bins])
    return {
        "tokens_per_step": round(len(weights) / steps, 1),
        "rows_per_step": round(sum(len(b.rows) for b in bins) / steps, 2),
        "active": round(float((weights != 0).mean()), 4),
        "weights_other_than_1": round(float(((weights != 0) & (weights != 1)).sum() / (weights != 0).sum()), 4),
    }


class Job:
    """One way to train on one set of bins, for some number of steps."""

    def __init__(self, work: Path, who: str, packed: str, steps: int) -> None:
        self.out = work / f"run-{who}-{packed}-{steps}"
        if who == "postmill":
            self.argv = postmill(
                "train", work / packed, "-m", work / "model", "-o", self.out, "--tuner", "full", "--steps", str(steps),
                "--bins-per-step", "1", "--lr", LR, "--schedule", "constant", "--warmup", "0", "--seed", SEED,
                "--weight-decay", "0.1", "--beta2", "0.95", "--clip", "1.0", "--save-every", "0", "--quiet", "--force",
            )  # fmt: skip
        else:
            driver = HERE / "rivals" / f"{who}_sft.py"
            bins = work / f"{packed}-{steps}.npz"
            model = str(work / "model")
            self.argv = [str(interpreter(who)), str(driver), model, str(bins), str(self.out), LR]

    def clear(self) -> None:
        for path in (self.out, self.out.with_name(f"{self.out.name}.checkpoints")):
            shutil.rmtree(path, ignore_errors=True)

    def run(self) -> None:
        self.clear()
        done = subprocess.run(self.argv, capture_output=True, text=True, env=os.environ | QUIET, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.argv[:2]}: exit {done.returncode}: {done.stderr[-3000:]}")

    def losses(self) -> list[float]:
        if (self.out / "record.json").exists():
            return list(json.loads((self.out / "record.json").read_text())["losses"])
        return [json.loads(line)["loss"] for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    def data_share(self) -> float:
        """Of our time in steps, what went into waiting for bins."""
        lines = [json.loads(line) for line in (self.out / "timing.jsonl").read_text().splitlines()]
        return float(f"{sum(x['data_seconds'] for x in lines) / sum(x['seconds'] for x in lines):.2g}")

    def seconds(self) -> list[float]:
        """Of each step but the first two."""
        if (self.out / "record.json").exists():
            return list(json.loads((self.out / "record.json").read_text())["seconds"][1:])
        return [json.loads(line)["seconds"] for line in (self.out / "timing.jsonl").read_text().splitlines()][2:]


def median_step(job: Job) -> float:
    return statistics.median(job.seconds())


def interpreter(who: str) -> Path:
    return ENVIRONMENTS / who / "bin" / "python"


def furthest(ours: list[float], theirs: list[float]) -> float:
    """Largest relative difference of two loss curves."""
    assert len(ours) == len(theirs), f"{len(ours)} steps against {len(theirs)}"
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def prepare(work: Path, tokenizer: Path, source: Path, size: dict[str, int], row_tokens: int, steps: int) -> Facts:
    """The model and both kinds of bins under `work`."""
    make_model(work / "model", tokenizer, size)
    for name, loss_scale in (("weighted", "default+hermes"), ("plain", "default")):
        make_rows(work / f"{name}.jsonl", source, weighted=name == "weighted")
        make_packed(work, name, loss_scale, row_tokens)
    export_bins(work / "plain", work / f"plain-{steps}.npz", steps)
    return export_bins(work / "weighted", work / f"weighted-{steps}.npz", steps)


def curves(work: Path, there: list[str], steps: int, facts: Facts) -> Facts:
    """Runs everyone; raises if losses differ by 1e-5 relative in any step."""
    found = facts | {"threads": os.environ.get("OMP_NUM_THREADS", "as each program chooses")}
    for who in there:
        name, packed, _ = KINDS[who]
        ours, theirs = Job(work, "postmill", packed, steps), Job(work, who, packed, steps)
        for job in (ours, theirs):
            job.run()
        difference = furthest(ours.losses(), theirs.losses())
        assert difference < 1e-5, f"loss curves differ by {difference:.2e} from {name}'s"
        found["share of a step that ours waits for data"] = ours.data_share()
        found[f"largest relative difference from {name} in {steps} steps"] = float(f"{difference:.2e}")
        found[f"loss at the start and the end, {packed}"] = [round(ours.losses()[at], 4) for at in (0, -1)]
    return found


def clocked(work: Path, there: list[str], steps: int, tokens: float) -> list[Rival]:
    """Everyone, timed by their median step."""
    rivals = []
    for who, name, packed, note in [("postmill", "postmill", "weighted", ""), *((w, *KINDS[w]) for w in there)]:
        job = Job(work, who, packed, steps)
        seconds = functools.partial(median_step, job)
        rivals.append(Rival(name, job.argv, tokens, note, prepare=job.clear, env=QUIET, seconds=seconds))
    return rivals


def cases(smoke: bool) -> Iterator[Case]:
    tokenizer, source = assets.qwen3_tokenizer(), assets.llamafactory_data()
    there = [who for who in KINDS if interpreter(who).exists()]
    if tokenizer is None or source is None or not there:
        missing = "the tokenizer or the data" if tokenizer is None or source is None else "the rivals (make rivals)"
        yield Case("sft 31M", "", "tokens", [], skip=f"{missing} cannot be found here")
        return
    model, size = ("toy", TOY) if smoke else ("31M", FULL)
    what = f"full SFT of a {model} Qwen3, V 151,936, float32"
    jobs = [(1024, 3, True)] if smoke else [(1024, 200, False), (1024, 8, True), (2048, 8, True)]
    for row_tokens, steps, clock in jobs:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            facts = prepare(work, tokenizer, source, size, row_tokens, steps)
            yield Case(
                f"sft {model}, bins of {row_tokens}" if clock else f"sft {model}, curves of {steps} steps",
                f"{what}, bins of {row_tokens}: the median step" if clock else f"{what}: are the losses equal?",
                "tokens",
                clocked(work, there, steps, facts["tokens_per_step"]) if clock else [],
                check=functools.partial(curves, work, there, steps, facts),
                repeats=1 if smoke else 2,
                warm_up=False,  # each run leaves its own first steps out
                packages=("torch", "transformers"),
            )
