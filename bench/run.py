"""Run benchmarks: `python bench/run.py [--smoke] [--no-record] [--case WORD] [WORD ...]`.

WORDs pick benchmark files whose path contains one of them. `--smoke` runs everything at toy size, once, and records
nothing: it proves that the benchmarks run and that rivals agree.
"""

import argparse
import importlib.util
import sys
import traceback
from pathlib import Path

from harness import run_cases

ROOT = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run only files whose path contains one of these")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, one round, nothing recorded")
    parser.add_argument("--no-record", action="store_true", help="do not append to bench/results/")
    parser.add_argument("--case", default="", help="run only cases whose name contains this")
    args = parser.parse_args()
    sys.path.insert(1, str(ROOT.parent / "tests"))  # benchmarks share the tests' assets
    failed = []
    for path in sorted(ROOT.rglob("bench_*.py")):
        name = path.relative_to(ROOT).as_posix()
        if args.words and not any(word in name for word in args.words):
            continue
        try:
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            cases = (case for case in module.cases(args.smoke) if args.case in case.name or case.skip)
            run_cases(name.removesuffix(".py"), cases, smoke=args.smoke, record=not args.no_record)
        except Exception:  # the program's edge: one broken benchmark must not hide the others
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
