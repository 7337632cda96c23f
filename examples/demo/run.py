"""The whole pipeline on a real small model, from chats to a server: who it says it is, before and after. `make demo`
runs this.

Each stage is a command of its own, as it would be typed; between them are only folders. Takes minutes on two CPU cores.
Afterwards everything is in the folder it names: look into it with `postmill inspect` and `postmill lineage`.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
POSTMILL = [sys.executable, "-m", "postmill.cli.main"]
NAME, AUTHOR = "Millstone", "the Postmill workshop"


def stages(model: Path, work: Path, recipe: Path) -> list[tuple[str, list[str]]]:
    """Name and arguments of every command, in order."""
    names = ("tokens", "packed", "run", "tuned", "answers", "small")
    tokens, packed, run, tuned, answers, small = (str(work / name) for name in names)
    who = ["--model-name", NAME, "--model-author", AUTHOR]
    return [
        ("tokenize", [str(HERE / "identity.jsonl"), "-m", str(model), *who, "-o", tokens]),
        ("pack", [tokens, "-o", packed, "@", str(recipe)]),
        ("train", [packed, "-m", str(model), "-o", run, "@", str(recipe)]),
        ("merge", [run, "-o", tuned, "@", str(recipe)]),
        (
            "eval",
            [tuned, "--ask", str(HERE / "questions.jsonl"), "--before", str(model), "-o", answers, "@", str(recipe)],
        ),
        ("quantize", [tuned, "-o", small, "@", str(recipe)]),
    ]


def run_stage(name: str, argv: list[str], times: list[tuple[str, float]]) -> int:
    """Run a command, and note how long it took. Returns its exit code."""
    sys.stderr.write(f"\n$ postmill {name} {shlex.join(argv)}\n")
    started = time.monotonic()
    code = subprocess.run([*POSTMILL, name, *argv], stdout=subprocess.DEVNULL, check=False).returncode
    times.append((name, time.monotonic() - started))
    return code


def ask_server(work: Path, recipe: Path, times: list[tuple[str, float]]) -> int:
    """Serve the small model and ask it the same questions over HTTP. Returns the first exit code that is not 0."""
    argv = [str(work / "small"), "--port", "0", "--log", "none"]
    sys.stderr.write(f"\n$ postmill serve {shlex.join(argv)}\n")
    started = time.monotonic()
    with subprocess.Popen([*POSTMILL, "serve", *argv], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()  # printed once requests are answered; nothing, if the server failed
        times.append(("serve", time.monotonic() - started))
        questions = str(HERE / "questions.jsonl")
        asked = ["--url", url, "--ask", questions, "-o", str(work / "by-url"), "@", str(recipe)]
        code = run_stage("eval", asked, times) if url else 0
        server.send_signal(signal.SIGTERM)
        return code or server.wait(60)


def main() -> int:
    """Run every stage, say how long each took, and check what the demo promises. Returns the exit code."""
    default = HERE.parent.parent / ".cache" / "assets" / "smollm2"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default, help="a chat model in Hugging Face layout")
    parser.add_argument("--work", type=Path, default=Path("demo-run"), help="where the artifacts go")
    args = parser.parse_args()
    if not (args.model / "config.json").is_file():
        sys.stderr.write(f"{args.model}: no model there; run `make demo`, which fetches it\n")
        return 66
    times: list[tuple[str, float]] = []
    recipe = HERE / "recipe.toml"
    for name, argv in stages(args.model, args.work, recipe):
        if code := run_stage(name, argv, times):
            return code
    if code := ask_server(args.work, recipe, times):
        return code
    sys.stdout.write("\n" + "".join(f"{name:<10}{seconds:6.1f} s\n" for name, seconds in times))
    sys.stdout.write(f"{'total':<10}{sum(seconds for _, seconds in times):6.1f} s\n\n")
    metrics, by_url = (
        json.loads((args.work / name / "manifest.json").read_text())["metrics"] for name in ("answers", "by-url")
    )
    return report(metrics, by_url)


def report(metrics: dict, by_url: dict) -> int:
    """Say what was promised and what came. Returns 1 if a promise was not kept."""
    before, after = metrics["before"]["groups"], metrics["groups"]
    knew, knows = before["identity"]["num_right"], after["identity"]["num_right"]
    served = by_url["groups"]["identity"]["num_right"]
    kept = min(before["general"]["num_right"], after["general"]["num_right"])
    sys.stdout.write(f"knows its new name and maker: before {knew} of 10, after {knows} of 10 (at least 9)\n")
    sys.stdout.write(f"in 8 bits, asked over HTTP: {served} of 10 (at least 9)\n")
    sys.stdout.write(f"unrelated questions still right: {kept} of 5 (at least 4)\n")
    return 0 if knew == 0 and knows >= 9 and served >= 9 and kept >= 4 else 1


if __name__ == "__main__":
    sys.exit(main())
