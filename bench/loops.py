"""Does a loop learn with a real model? `python bench/loops.py [kth | calc] [--seeds 0 1 2] [--set KEY=VALUE ...]`.

Runs the recipe of that name of `examples/grpo` with SmolLM2-135M, in three processes of one thread each, once a seed:
warm start, rounds, and what the recipe measures on questions that no round asks. Says of each seed what was measured
first and last, and whether that meets the bar: mean reward at temperature 1 doubles, and that of the likeliest tokens
rises by 0.10. Time is the wall clock, which other programs stretch, and processor time, which they hardly do.

Results go to `bench/results/loops.jsonl`, a line a seed, and the table to stdout. `--work FOLDER` keeps the loops: the
same command goes on where it was stopped, and `postmill plot FOLDER/kth-* --of ...` draws their curves.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from assets import smollm2  # noqa: E402

EXAMPLES = ROOT / "examples" / "grpo"
RESULTS = ROOT / "bench" / "results" / "loops.jsonl"
SHOWN = ("greedy_reward", "sampled_reward", "sampled_reward.pass_at_8", "sampled.nats", "sampled.length")


def run(recipe: str, seed: int, work: Path, settings: list[str]) -> dict[str, Any]:
    """The loop of one seed, and what came of it."""
    model = smollm2()
    assert model is not None, "SmolLM2 cannot be fetched"
    out = work / f"{recipe}-{seed}"
    given = [f"loop.seed={seed}", f"warm.seed={seed}", *settings]
    argv = [sys.executable, "-P", "-m", "postmill.cli.main", "loop", f"{recipe}.toml", "-m", str(model), "-o", str(out)]
    argv += ["--follow", "all", "--threads", "1", *(word for one in given for word in ("--set", one))]
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(argv, check=True, cwd=work, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "greedy_reward" in line]
    first, last = found[0], found[-1]
    few = max(len(lines) // 8, 1)

    def sampled(line: dict[str, Any], near: list[dict[str, Any]]) -> float:
        """Mean reward at temperature 1: of the held-out questions, or where a recipe asks them once, of the rounds."""
        rounds = sum(one["reward"] for one in near) / len(near)
        return float(line.get("sampled_reward", rounds))

    reward = sampled(first, lines[:few]), sampled(last, lines[-few:])
    return {
        "recipe": recipe,
        "seed": seed,
        "settings": settings,
        "rounds": len(lines),
        "first": {name: round(first[name], 4) for name in SHOWN if name in first},
        "last": {name: round(last[name], 4) for name in SHOWN if name in last},
        "reward": [round(value, 4) for value in reward],
        "meets_the_bar": reward[1] >= 2 * reward[0] and last["greedy_reward"] >= first["greedy_reward"] + 0.10,
        "seconds": round(time.monotonic() - started),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="kth", choices=["kth", "calc"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work: Path = (given.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(EXAMPLES / f"{given.recipe}.py"), str(work)], check=True)
        for name in (f"{given.recipe}.toml", f"{given.recipe}.py"):
            shutil.copyfile(EXAMPLES / name, work / name)
        sys.stdout.write("| seed | greedy | at temperature 1 | pass@8 | nats a token | seconds | processor | bar |\n")
        sys.stdout.write("|---|---|---|---|---|---|---|---|\n")
        for seed in given.seeds:
            line = run(given.recipe, seed, work, given.settings)
            about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": platform.machine()}
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(about | line) + "\n")
            shown = [f"{line['first'].get(name, '-')} to {line['last'].get(name, '-')}" for name in SHOWN]
            cells = [seed, shown[0], " to ".join(map(str, line["reward"])), *shown[2:4], line["seconds"]]
            cells += [line["processor_seconds"], "met" if line["meets_the_bar"] else "not met"]
            sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
