"""Does search find more than the likeliest answer? `python bench/search.py [--work FOLDER] [--questions 512]`.

The model is that of `examples/grpo/kth.toml` after its warm start: SmolLM2-135M, three updates, before any reward. It
answers the 96 held-out questions greedily, then by best-of-8, DVTS and MCTS, each with two guides: an oracle, which
knows the solution and judges the beginning of an answer, and a process reward model. The model learns from the labels
that MCTS with the oracle leaves on `--questions` other questions. Tokens are those of all tries for a question.

Results go to `bench/results/search.jsonl`, a line a guide, and the table to stdout. `--work FOLDER` keeps what was
made: the same command goes on where it was stopped.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from assets import smollm2  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "search.jsonl"
ORACLE = '''def judge(row, text):
    """1 for the solution, less for a longer or shorter beginning of it, 0 for what leads elsewhere."""
    said, right = text.strip(), row["solution"]
    return float(said == right) or 0.5 * len(said) / len(right) * right.startswith(said)
'''
SEARCHES = {
    "best_of_n": ["--beams", "2", "--width", "4"],
    "dvts": ["--beams", "2", "--width", "4", "--step-tokens", "1"],
    "mcts": ["--width", "4", "--step-tokens", "1", "--playouts", "0", "--search-tokens", "16"],
}
LABELS = ["--width", "8", "--step-tokens", "1", "--playouts", "1", "--search-tokens", "8", "--samples", "64"]


class Bench:
    """Commands of one folder: what is there already is not made again."""

    def __init__(self, work: Path, model: Path) -> None:
        self.work, self.model = work, model

    def run(self, *words: str) -> dict[str, Any]:
        """A command; what it measured."""
        argv = [sys.executable, "-P", "-m", "postmill.cli.main", *words, "--threads", "1", "--json"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(argv, check=True, cwd=self.work, env=environment, stdout=subprocess.PIPE)
        metrics: dict[str, Any] = json.loads(done.stdout)["metrics"]
        return metrics

    def prepare(self, questions: int) -> None:
        """The warm start of `kth.toml`, the prompts and the oracle."""
        subprocess.run([sys.executable, str(ROOT / "examples/grpo/kth.py"), str(self.work)], check=True)
        (self.work / "oracle.py").write_text(ORACLE)
        base = ["-m", str(self.model)]
        self.run("tokenize", "warm.jsonl", *base, "-o", "warm_tokens")
        self.run("pack", "warm_tokens", "-o", "warm_pack", "--row-tokens", "640")
        settings = ["--bins-per-step", "1", "--steps", "3", "--lr", "1e-3", "--schedule", "constant"]
        self.run("train", "warm_pack", *base, "-o", "warm", *settings)
        self.run("tokenize", "held_out.jsonl", *base, "--for", "prompt", "-o", "held_out")
        self.run("tokenize", f"ask.jsonl#{questions}", *base, "--for", "prompt", "-o", "ask")

    def answer(self, prompts: str, out: str, *words: str) -> dict[str, Any]:
        """Answers of the warm model."""
        return self.run("rollout", prompts, "-m", "warm", "-o", out, "--max-new-tokens", "5", *words)

    def right(self, name: str) -> float:
        """Share of right answers."""
        return float(self.run("reward", name, "--func", "exact", "-o", f"{name}_reward")["reward_mean"])

    def teach(self) -> dict[str, float]:
        """Train the process reward model on what MCTS with the oracle finds; what it learned from."""
        words = ["--search", "mcts", "--guide", "oracle.py:judge", "--right-at", "1", *LABELS]
        trees = self.answer("ask", "trees", *words)
        self.run("pack", "trees", "-o", "trees_pack", "--row-tokens", "1024")
        learn = ["--objective", "prm", "--tuner", "full", "--lr", "1e-4", "--epochs", "3", "--bins-per-step", "1"]
        found = self.run("train", "trees_pack", "-m", str(self.model), "-o", "prm", *learn)
        return {"label_rows": trees["rows"], "label_tokens": trees["search_tokens"]} | {
            name: found[name] for name in ("accuracy",) if name in found
        }

    def search(self, guide: str, words: list[str]) -> dict[str, dict[str, float]]:
        """Accuracy of each search and tokens a question."""
        found: dict[str, dict[str, float]] = {}
        for name, options in SEARCHES.items():
            out = f"{guide}_{name}"
            metrics = self.answer("held_out", out, "--search", name, "--samples", "1", *options, *words)
            tokens = metrics["search_tokens"] / metrics["rows"]
            found[name] = {"right": round(self.right(out), 4), "tokens": round(tokens, 2)}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument(
        "--questions", type=int, default=512, help="questions that the process reward model learns from"
    )
    given = parser.parse_args()
    model = smollm2()
    assert model is not None, "SmolLM2 cannot be fetched"
    with tempfile.TemporaryDirectory() as folder:
        work: Path = (given.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(work, model)
        bench.prepare(given.questions)
        metrics = bench.answer("held_out", "greedy", "--samples", "1", "--temperature", "0")
        greedy = {"right": round(bench.right("greedy"), 4), "tokens": round(metrics["mean_length"], 2)}
        sys.stdout.write("| guide | search | right | sampled tokens a question |\n|---|---|---|---|\n")
        sys.stdout.write(f"| - | greedy | {greedy['right']:.3f} | {greedy['tokens']:.1f} |\n")
        for guide, words in {"oracle": ["--guide", "oracle.py:judge"], "prm": ["--prm", "prm"]}.items():
            started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            learned = bench.teach() if guide == "prm" else {}
            found = bench.search(guide, words)
            seconds = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started)
            about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": platform.machine(), "guide": guide}
            line = about | {"questions": given.questions, "greedy": greedy} | found | learned
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"processor_seconds": seconds}) + "\n")
            for name, one in found.items():
                sys.stdout.write(f"| {guide} | {name} | {one['right']:.3f} | {one['tokens']:.1f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
