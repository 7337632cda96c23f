"""How near is `postmill estimate` to the memory that runs of `train` take? `python bench/estimates.py [NAME ...]`.

Twenty runs on a CPU: tuners, optimizers, lengths, micro-batches, gradient checkpointing, wide and deep models, large
and small vocabularies. Each is what `estimate --probe` says: two steps with a checkpoint in a process of their own, and
its peak of resident memory beside the expected number. None of these runs was used to set the constants of the
estimate.

Results go to `bench/results/estimates.jsonl`, a line a run, and the table to stdout. Leaves with 1 if a run needs more
than 25% over what was expected, or more than one in ten is off by more than 15%.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import tiny_model  # noqa: E402
from assets import smollm2  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "estimates.jsonl"


def _shape(hidden: int, layers: int, vocab: int, inner: int, *, tied: bool = True) -> dict[str, Any]:
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 128}
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner, "vocab_size": vocab}
    return sizes | heads | {"tied": tied, "max_position_embeddings": 8192, "initializer_range": 0.02}


SHAPES: dict[str, dict[str, Any]] = {
    "narrow": _shape(256, 12, 32000, 688),
    "middle": _shape(512, 10, 16000, 1376, tied=False),
    "wide": _shape(1024, 4, 49152, 2816),
    "deep": _shape(384, 24, 8000, 1024),
}
"""Random Llamas of 17 to 96 million weights; `smollm2` is the real one."""


class Run(NamedTuple):
    """A model, the length of its bins, and what train is told."""

    model: str
    bin_tokens: int
    options: str


RUNS = {
    "full": Run("narrow", 1024, "--tuner full"),
    "full-two-bins": Run("narrow", 1024, "--tuner full --micro-bins 2"),
    "full-long": Run("middle", 3072, "--tuner full"),
    "full-wide": Run("wide", 512, "--tuner full"),
    "full-deep": Run("deep", 2048, "--tuner full"),
    "full-checkpointed": Run("deep", 4096, "--tuner full --gradient-checkpointing"),
    "full-checkpointed-wide": Run("wide", 2048, "--tuner full --gradient-checkpointing"),
    "full-adafactor": Run("wide", 1024, "--tuner full --optimizer adafactor"),
    "full-lion": Run("middle", 1024, "--tuner full --optimizer lion"),
    "full-muon": Run("middle", 1024, "--tuner full --optimizer muon"),
    "full-smollm2": Run("smollm2", 256, "--tuner full"),
    "lora": Run("wide", 1024, "--tuner lora"),
    "lora-two-bins": Run("middle", 1024, "--tuner lora --micro-bins 2"),
    "lora-long": Run("narrow", 4096, "--tuner lora --rank 8"),
    "lora-large-rank": Run("middle", 1024, "--tuner lora --rank 128"),
    "lora-deep": Run("deep", 2048, "--tuner lora"),
    "lora-checkpointed": Run("deep", 4096, "--tuner lora --gradient-checkpointing"),
    "lora-checkpointed-wide": Run("wide", 2048, "--tuner lora --gradient-checkpointing"),
    "lora-smollm2": Run("smollm2", 512, "--tuner lora"),
    "lora-smollm2-checkpointed": Run("smollm2", 1024, "--tuner lora --gradient-checkpointing"),
}


def make_inputs(folder: Path, run: Run) -> tuple[Path, Path]:
    """The model, and bins of random rows for it."""
    base = folder / run.model
    if run.model == "smollm2":
        found = smollm2()
        assert found is not None, "SmolLM2 cannot be fetched"
        base = found
    elif not base.is_dir():
        settings = dict(SHAPES[run.model])
        tiny_model.write_model(base, tied=settings.pop("tied"), **settings)
    packed = folder / f"{run.model}-{run.bin_tokens}"
    if not packed.is_dir():
        rows = tiny_model.make_rows(12 * run.bin_tokens // 128, longest=min(run.bin_tokens, 300))
        tiny_model.write_packed(packed, base, rows, row_tokens=run.bin_tokens)
    return base, packed


def measure(folder: Path, name: str) -> dict[str, Any]:
    """The line of one run."""
    run = RUNS[name]
    base, packed = make_inputs(folder, run)
    argv = [sys.executable, "-P", "-m", "postmill.cli.main", "estimate", str(packed), "-m", str(base), "--probe"]
    argv += ["--json", "--bins-per-step", "4", *run.options.split()]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    [expected] = [part["expected"] for part in found["memory"] if part["name"] == "total"]
    peak = found["probe"]["peak"]
    about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": platform.machine()}
    sizes = {"expected": round(expected), "peak": peak, "off": round(expected / peak - 1, 4)}
    return about | {"run": name, "model": run.model, "bin_tokens": run.bin_tokens, "options": run.options} | sizes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    names = parser.parse_args().names or list(RUNS)
    lines = []
    sys.stdout.write("| run | model | bin | expected MiB | measured MiB | off |\n|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            line = measure(Path(folder), name)
            lines.append(line)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            cells = [name, line["model"], line["bin_tokens"], line["expected"] >> 20, line["peak"] >> 20]
            sys.stdout.write("| " + " | ".join(map(str, cells)) + f" | {line['off']:+.1%} |\n")
            sys.stdout.flush()
    far = sum(abs(line["off"]) > 0.15 for line in lines)
    low = min(line["expected"] / line["peak"] for line in lines)
    sys.stdout.write(f"{far} of {len(lines)} off by more than 15%; the lowest is {low:.2f} of what was measured\n")
    return int(low < 0.75 or far > len(lines) // 10)


if __name__ == "__main__":
    sys.exit(main())
