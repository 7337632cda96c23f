"""What each way of quantizing does to a model: python quantize_table.py MODEL/ TEXT... > table.md

Rows are paragraphs of the text files: half of them for methods that look at data, the other half to compare on. Every
line is one run of `postmill quantize`, whose gate does the measuring; limits are off. `--tokens N` compares on N tokens
and calibrates on as many.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOUR_BITS = ["--scheme", "w4a16", "--group-size", "64", "--no-symmetric"]
RUNS = {
    "rounding, 4 bits": FOUR_BITS,
    "GPTQ, 4 bits": [*FOUR_BITS, "--method", "gptq"],
    "AWQ, 4 bits": [*FOUR_BITS, "--method", "awq"],
    "HQQ, 4 bits": [*FOUR_BITS, "--method", "hqq"],
    "GGUF `q4_k_m`": ["--scheme", "q4_k_m"],
    "`w8a8`": ["--scheme", "w8a8"],
    "`w8a8`, SmoothQuant": ["--scheme", "w8a8", "--method", "smoothquant"],
    "`fp8`": ["--scheme", "fp8"],
    "`nvfp4a16`": ["--scheme", "nvfp4a16"],
    "`mxfp4a16`": ["--scheme", "mxfp4a16"],
    "GGUF `q8_0`": ["--scheme", "q8_0"],
}
OPEN = ["--max-ppl-increase", "1e9", "--min-agreement", "0", "--max-kl", "1e9", "--threads", "1", "-q"]


def postmill(*arguments: str) -> None:
    """Run a command of ours. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "postmill.cli.main", *arguments], check=True, stdout=subprocess.DEVNULL)


def tokens_of(paragraphs: list[str], model: Path, folder: Path) -> Path:
    """A tokens artifact of them."""
    rows = folder.with_suffix(".jsonl")
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs))
    postmill("tokenize", str(rows), "-m", str(model), "-o", str(folder), "-q")
    return folder


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=4096)
    given = parser.parse_args()
    paragraphs = [p for path in given.texts for p in path.read_text().split("\n\n") if len(p) > 400]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        seen, held_out = (tokens_of(paragraphs[start::2], given.model, work / f"rows{start}") for start in (0, 1))
        print("| | bytes | perplexity | likeliest token agrees | KL divergence |\n|---|---|---|---|---|", flush=True)
        for number, (name, options) in enumerate(RUNS.items()):
            needs_rows = "gptq" in options or "awq" in options or "smoothquant" in options
            rows = ["--rows", str(seen), "--calibration-tokens", str(given.tokens)] if needs_rows else []
            out = work / str(number)
            gate = ["--gate", str(held_out), "--parity-tokens", str(given.tokens)]
            postmill("quantize", str(given.model), "-o", str(out), *options, *rows, *gate, *OPEN)
            metrics = json.loads((out / "manifest.json").read_text())["metrics"]
            report, size = metrics["parity"], metrics["bytes_after"] / metrics["bytes_before"]
            if number == 0:
                print(f"| source | 100% | {report['perplexity_source']} | 100% | 0 |")
            print(
                f"| {name} | {size:.0%} | {report['perplexity_result']} | {report['top1_agreement']:.1%} |"
                f" {report['kl_mean']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
