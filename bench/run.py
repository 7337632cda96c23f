"""Run benchmarks: `python bench/run.py [--smoke] [--no-record] [--case WORD] [WORD ...]`.

WORDs pick benchmark files whose path contains one of them. `--smoke` runs everything at toy size, once, and records
nothing: it proves that the benchmarks run and that rivals agree. It runs a file on each core, so its times say nothing.
"""

import argparse
import importlib.util
import os
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from harness import run_cases

ROOT = Path(__file__).resolve().parent


def run_file(path: Path, case: str, *, smoke: bool, record: bool) -> bool:
    """Run the cases of one file whose names contain `case`; whether all went well. What did not is on stderr."""
    name = path.relative_to(ROOT).as_posix()
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cases = (one for one in module.cases(smoke) if case in one.name or one.skip)
        run_cases(name.removesuffix(".py"), cases, smoke=smoke, record=record)
    except Exception:  # the program's edge: one broken benchmark must not hide the others
        traceback.print_exc()
        return False
    return True


def try_file(path: Path, case: str) -> tuple[bool, str]:
    """`run_file` at toy size, beside others; and all that it said."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        well = run_file(path, case, smoke=True, record=False)
    return well, said.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run only files whose path contains one of these")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, one round, nothing recorded")
    parser.add_argument("--no-record", action="store_true", help="do not append to bench/results/")
    parser.add_argument("--case", default="", help="run only cases whose name contains this")
    args = parser.parse_args()
    sys.path.insert(1, str(ROOT.parent / "tests"))  # benchmarks share the tests' assets
    names = {path: path.relative_to(ROOT).as_posix() for path in sorted(ROOT.rglob("bench_*.py"))}
    paths = [path for path, name in names.items() if not args.words or any(word in name for word in args.words)]
    failed = []
    if args.smoke:
        with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), max(1, len(paths)))) as pool:
            for path, (well, said) in zip(paths, pool.map(try_file, paths, [args.case] * len(paths)), strict=True):
                sys.stdout.write(said)
                sys.stdout.flush()
                failed += [] if well else [names[path]]
    else:
        for path in paths:
            well = run_file(path, args.case, smoke=False, record=not args.no_record)
            failed += [] if well else [names[path]]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
