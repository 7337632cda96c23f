"""Is the data path slower than that of an older version? `python bench/against.py CHECKOUT [--rows N] [--pairs 5]`.

CHECKOUT is a working tree of the older version with its own `.venv` (`git worktree add`, then `make setup` there). Both
make bins of the same chats of several turns, Qwen3's tokenizer, two strategies of weights: `tokenize | pack`, the whole
command with the start of its processes. They take turns, pair by pair, and who is first changes. What counts is the
median of the ratios of pairs: of the clock, and of processor time, which other programs hardly change. The ids of all
rows must be equal.

Then ours alone with one thread and with two, on text seen before: `tokenize`, its median MB/s.

Results go to `bench/results/against.jsonl`, a line a run, and the table to stdout.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

import assets  # noqa: E402
import conversations  # noqa: E402
import texts  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "against.jsonl"
WEIGHTS = "default+hermes"


class Took(NamedTuple):
    seconds: float
    processor: float


def timed(command: list[str]) -> Took:
    """Run it to its end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def chain(checkout: Path, rows: Path, model: Path, template: Path, out: Path) -> list[str]:
    """`tokenize | pack` of a checkout."""
    stage = [str(checkout / ".venv" / "bin" / "python"), "-P", "-m", "postmill.cli.main"]
    tokenize = [*stage, "tokenize", str(rows), "-m", str(model), "--chat-template", str(template)]
    tokenize += ["--loss-scale", WEIGHTS, "--quiet"]
    pack = [*stage, "pack", "-", "-o", str(out), "--row-tokens", "4096", "--on-long", "drop", "--quiet"]
    return ["bash", "-o", "pipefail", "-c", f"{shlex.join(tokenize)} | {shlex.join(pack)}"]


def ids(packed: Path) -> bytes:
    """The column of all ids, as one piece."""
    import pyarrow as pa

    with pa.memory_map(str(packed / "tokens" / "tokens.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    return b"".join(chunk.flatten().to_numpy().tobytes() for chunk in table.column("input_ids").chunks)


def against(work: Path, old: Path, given: dict[str, Path], pairs: int, megabytes: float) -> dict[str, Any]:
    """Pairs of whole commands."""
    sides = {"new": ROOT, "old": old}
    commands = {name: chain(side, out=work / name, **given) for name, side in sides.items()}
    found: dict[str, list[Took]] = {name: [] for name in sides}
    for number in range(pairs):
        for name in sorted(sides, reverse=bool(number % 2)):
            shutil.rmtree(work / name, ignore_errors=True)
            found[name].append(timed(commands[name]))
    assert ids(work / "new") == ids(work / "old"), "ids differ"
    both = list(zip(found["old"], found["new"], strict=True))
    return {
        "case": "tokenize | pack",
        "old": subprocess.run(
            ["git", "-C", str(old), "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip(),
        "pairs": pairs,
        "seconds": {name: round(statistics.median(took.seconds for took in runs), 2) for name, runs in found.items()},
        "processor": {
            name: round(statistics.median(took.processor for took in runs), 2) for name, runs in found.items()
        },
        "mb_s": round(megabytes / statistics.median(took.seconds for took in found["new"]), 1),
        "faster": round(statistics.median(before.seconds / now.seconds for before, now in both), 3),
        "faster_by_processor": round(statistics.median(before.processor / now.processor for before, now in both), 3),
    }


def threads(work: Path, given: dict[str, Path], pairs: int, megabytes: float) -> dict[str, Any]:
    """One thread and two, on rows whose text comes twice."""
    twice = work / "twice.jsonl"
    twice.write_bytes(given["rows"].read_bytes() * 2)
    found: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(pairs):
        for number, runs in found.items():
            command = [
                sys.executable,
                "-P",
                "-m",
                "postmill.cli.main",
                "tokenize",
                str(twice),
                "-m",
                str(given["model"]),
            ]
            command += ["--chat-template", str(given["template"]), "--loss-scale", WEIGHTS, "--quiet"]
            shutil.rmtree(work / "tokens", ignore_errors=True)
            runs.append(timed([*command, "-o", str(work / "tokens"), "--threads", number]).seconds)
    speed = {number: round(2 * megabytes / statistics.median(runs), 1) for number, runs in found.items()}
    ratio = statistics.median(one / two for one, two in zip(found["1"], found["2"], strict=True))
    return {"case": "tokenize, threads", "pairs": pairs, "mb_s": speed, "faster": round(ratio, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5)
    asked = parser.parse_args()
    import trl

    model, source = assets.qwen3_tokenizer(), assets.llamafactory_data()
    assert model is not None, "the tokenizer cannot be fetched"
    assert source is not None, "the chats cannot be fetched"
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3_training.jinja"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chats = conversations.chats(asked.rows, source, texts.corpora())
        _, megabytes = conversations.write(work / "rows.jsonl", chats)
        given = {"rows": work / "rows.jsonl", "model": model, "template": template}
        about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": platform.machine(), "rows": asked.rows}
        for line in (
            against(work, asked.checkout.resolve(), given, asked.pairs, megabytes),
            threads(work, given, asked.pairs, megabytes),
        ):
            sys.stdout.write(json.dumps(line) + "\n")
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(about | line) + "\n")


if __name__ == "__main__":
    main()
