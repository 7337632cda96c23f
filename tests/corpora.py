"""Damaged and hostile files of public test suites through `tokenize`: each ends in 0 or in a fault of the data.

    git clone --depth 1 https://github.com/apache/arrow-testing
    git clone --depth 1 https://github.com/nst/JSONTestSuite
    .venv/bin/python tests/corpora.py arrow-testing/data JSONTestSuite/test_parsing JSONTestSuite/test_transform

A file may be read, or refused in one line with an exit code from 65 to 78. It may not end in 70 (a bug of ours), kill
the process, or take 1 GiB of memory. Prints each fault, then how many files ended in which code; exits 1 for a fault.
"""

import importlib
import json
import os
import re
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from tiny_tokenizer import write_tokenizer  # noqa: E402

from postmill.cli.main import main as postmill  # noqa: E402

MOST_BYTES = 2**30
MOST_CPU_S = 120
_NOT_DATA = {".md", ".py", ".sh", ".pem", ".key", ".pkcs1", ".yaml", ".yml"}


def files_of(roots: list[Path]) -> Iterator[Path]:
    for root in roots:
        yield from sorted(p for p in root.rglob("*") if p.is_file() and p.suffix not in _NOT_DATA)


def tokenize(file: Path, model: Path, folder: Path) -> tuple[int, int, str]:
    """Of one file in its own process: exit code (-signal if it was killed), peak memory in bytes, what was said."""
    said, out = folder / "said", folder / "out"
    pid = os.fork()
    if not pid:
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S))
            stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            sys.argv = ["postmill", "tokenize", str(file), "-m", str(model), "-o", str(out), "--threads", "1"]
            postmill()
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            (folder / "modules").write_text(" ".join(n for n in sys.modules if n.startswith(("postmill.", "pyarrow."))))
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    shutil.rmtree(out, ignore_errors=True)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, said.read_text(errors="replace")


def fault_of(code: int, peak: int, said: str) -> str:
    if code != 0 and not (65 <= code <= 78 and code != 70):
        return f"exit {code}"
    if peak >= MOST_BYTES:
        return f"{peak >> 20} MiB"
    if code and not re.search(r"\S", said):
        return "nothing was said"
    return ""


def warm_up(model: Path, folder: Path) -> None:
    """Import once what each child would import for itself: what one of them had when it was done."""
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "bad.json").write_text("[")
    for name in ("rows.jsonl", "bad.json"):
        code, _, said = tokenize(folder / name, model, folder)
        assert code in (0, 65), said
        for module in (folder / "modules").read_text().split():
            importlib.import_module(module)
    for module in ("pyarrow.parquet", "pyarrow.csv", "pyarrow.compute", "postmill.stages.tokenize.tables"):
        importlib.import_module(module)


def main() -> int:
    roots = [Path(word) for word in sys.argv[1:]]
    num_faults, highest = 0, 0
    codes: dict[str, Counter[int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_tokenizer(folder / "model")
        warm_up(model, folder)
        for file in files_of(roots):
            code, peak, said = tokenize(file, model, folder)
            [root] = [root for root in roots if root in file.parents]
            place = file.relative_to(root)
            group = f"{root.name}/{place.parts[0]}" if len(place.parts) > 1 else root.name
            codes.setdefault(group, Counter())[code] += 1
            highest = max(highest, peak)
            if fault := fault_of(code, peak, said):
                num_faults += 1
                print(f"{place}\t{fault}\t{said.strip()[-300:]}", flush=True)
    for group, counts in codes.items():
        print(f"{group}: {sum(counts.values())} files, {dict(sorted(counts.items()))}")
    print(f"{num_faults} faults, peak {highest >> 20} MiB")
    return int(num_faults > 0)


if __name__ == "__main__":
    sys.exit(main())
