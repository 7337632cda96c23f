"""Instructions that a fixed piece of work takes, against the last recorded: `python bench/instructions.py [--record]`.

Seconds differ from run to run and machine to machine; the instructions of one binary on one input hardly do.
Valgrind's callgrind counts them, on the processor it imitates (AVX2, no AVX-512), so the host's does not matter. The
compiler does: a count is compared with the last one of the same architecture and release of rustc, and a part that
takes 5% more fails. `--record` appends the counts to `bench/results/instructions.jsonl`, for a change that is worth
its instructions.
"""

import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "instructions.jsonl"
PARTS = ("compile", "text", "ends", "chats", "pack")
ALLOWED = 1.05


def count(binary: Path, part: str) -> int:
    """Instructions of one part, as callgrind collects them in `measured`."""
    with tempfile.TemporaryDirectory() as folder:
        argv = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*fixed_work::measured*"]
        argv += [f"--callgrind-out-file={folder}/out", str(binary), part]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
    if done.returncode or not found or found[1] == "0":
        raise SystemExit(f"instructions: {part} was not counted: {done.stderr.strip().splitlines()[-1:]}")
    return int(found[1])


def rustc() -> str:
    """Release of the compiler, such as 1.95."""
    said = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return ".".join(said.split()[1].split(".")[:2])


def recorded(rustc_release: str) -> dict[str, int]:
    """The last recorded counts for this compiler and architecture, by part."""
    last: dict[str, int] = {}
    for line in RESULTS.read_text("utf-8").splitlines() if RESULTS.exists() else []:
        entry = json.loads(line)
        if (entry["rustc"], entry["machine"]) == (rustc_release, platform.machine()):
            last |= entry["instructions"]
    return last


def main() -> int:
    if shutil.which("valgrind") is None:
        print("instructions: valgrind not found, nothing was counted; install it to compare")
        return 0
    # --workspace: with the features of the Python module's build, so that cargo finds what that has compiled
    build = ["cargo", "build", "-q", "--release", "--workspace", "--example", "fixed_work"]
    subprocess.run(build, check=True, cwd=ROOT)
    binary = ROOT / "target" / "release" / "examples" / "fixed_work"
    release, failed = rustc(), []
    last = recorded(release)
    counts = {part: count(binary, part) for part in PARTS}
    for part, number in counts.items():
        before = last.get(part)
        ratio = f"{number / before - 1:+.2%} of {before:,}" if before else f"nothing recorded for rustc {release}"
        print(f"instructions: {part} {number:,} ({ratio})")
        if before and number > before * ALLOWED:
            failed.append(part)
    if "--record" in sys.argv[1:]:
        entry = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "rustc": release,
            "machine": platform.machine(),
            "instructions": counts,
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return 0
    for part in failed:
        print(f"instructions: {part} takes over 5% more than recorded; mend it, or run with --record", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
