"""What every benchmark shares: warm-up, interleaved rivals, medians with their spread, peak memory, one line of JSON.

A benchmark file is `bench/**/bench_*.py` with `cases(smoke)`, which yields `Case`s one at a time, so that the data of
one is gone before the next is made. A case first checks that its rivals give the same answer; only then the clock
starts. Rivals take turns, so that a machine that slows down slows all of them; a ratio is the median over rounds of
the ratio within a round. A rival is a function (timed in this process) or a command (a process of its own).
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
_MIB = 2**20
_LAUNCHER = """
import os, sys, time
start = time.perf_counter()
TO_NULL = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=TO_NULL)
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss)
"""
# A child's peak starts from what its parent held when it forked, so commands are started by a parent of 10 MB.


class Rival(NamedTuple):
    """One way to do the work."""

    name: str
    run: Callable[[], object] | Sequence[str]
    """A function, or the argv of a command; a command that exits with anything but 0 fails the case."""
    amount: float
    """Units of work in one run. Rates compare rivals that were given different amounts; `note` says so."""
    note: str = ""
    prepare: Callable[[], object] | None = None
    """Called before each run, off the clock."""
    env: dict[str, str] = {}  # noqa: RUF012  a NamedTuple's default is never written to
    seconds: Callable[[], float] | None = None
    """Called after each run, where only a part of it counts: the seconds to count, from what the run left."""


class Case(NamedTuple):
    """One question put to several rivals. The first rival is ours; ratios are ours over each other one.

    Without rivals it is a comparison that only leaves facts.
    """

    name: str
    question: str
    unit: str
    rivals: list[Rival]
    check: Callable[[], dict[str, Any]] | None = None
    """Raises if the rivals do not agree; returns facts worth keeping beside the times."""
    repeats: int = 5
    packages: tuple[str, ...] = ()
    """Whose versions matter."""
    skip: str = ""
    """Why the case cannot run here."""
    warm_up: bool = True
    """Whether a first round is thrown away."""
    gpu: str = ""
    """The name of the GPU, where one does the work; its memory is for `check` to measure."""


class Run(NamedTuple):
    """One timed run."""

    seconds: float
    peak_mib: float | None
    grown_mib: float | None
    """Peak above what the process held before; for a command the same as its peak."""


def machine(gpu: str = "") -> dict[str, Any]:
    """What was measured on: processor, cores this process may use, memory, system, and a GPU. Never the host's name."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": cores,
        "memory_gib": round(memory / 2**30),
        "os": platform.system(),
    } | ({"gpu": gpu, "gpus": 1} if gpu else {})


def results_file(gpu: str = "") -> Path:
    """`results/<cpu>-<cores>c.jsonl`, or `results/<gpu>-1x.jsonl`."""
    found = machine()
    name, count = (gpu, "1x") if gpu else (found["cpu"], f"{found['cores']}c")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return RESULTS / f"{slug}-{count}.jsonl"


def run_cases(bench: str, cases: Iterable[Case], *, smoke: bool = False, record: bool = True) -> None:
    """Run each case, print a line a rival, and append one line of JSON a case unless `smoke` or not `record`."""
    commit = _commit()  # of the code that was loaded, whatever lands while it runs
    for case in cases:
        if case.skip:
            print(f"{bench} {case.name}: skipped, {case.skip}", flush=True)
            continue
        line = _measure(bench, case, smoke) | {"commit": commit}
        _show(line)
        if record and not smoke:
            RESULTS.mkdir(exist_ok=True)
            with results_file(case.gpu).open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _measure(bench: str, case: Case, smoke: bool) -> dict[str, Any]:
    facts = case.check() if case.check else {}
    runs: dict[str, list[Run]] = {rival.name: [] for rival in case.rivals}
    rounds = 1 if smoke else case.repeats
    for number in range(-1 if case.warm_up and not smoke else 0, rounds):  # round -1 warms up and is thrown away
        turn = number % max(1, len(case.rivals))
        for rival in case.rivals[turn:] + case.rivals[:turn]:
            run = _run(rival)
            if case.gpu:  # the host's memory says nothing about it
                run = run._replace(peak_mib=None, grown_mib=None)
            if number >= 0:
                runs[rival.name].append(run)
    return {
        "bench": bench,
        "case": case.name,
        "question": case.question,
        "unit": case.unit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(case.gpu),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in case.packages},
        "rivals": {rival.name: _summary(rival, runs[rival.name]) for rival in case.rivals},
        "ratios": {
            rival.name: _significant(_ratio(case.rivals[0], runs[case.rivals[0].name], rival, runs[rival.name]))
            for rival in case.rivals[1:]
        },
        "facts": facts,
    }


def _run(rival: Rival) -> Run:
    if rival.prepare:
        rival.prepare()
    run = _run_function(rival.run) if callable(rival.run) else _run_command(rival)
    return run if rival.seconds is None else run._replace(seconds=rival.seconds())


def _run_function(function: Callable[[], object]) -> Run:
    before = _reset_peak()
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    peak = _status("VmHWM")
    del result
    grown = None if peak is None or before is None else peak - before
    return Run(seconds, peak, grown)


def _run_command(rival: Rival) -> Run:
    assert not callable(rival.run)
    argv = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *rival.run]
    # Installed programs find their modules compiled; the first round compiles what an installer has not.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""} | rival.env
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=False)
    code, seconds, peak = done.stdout.split() if done.stdout else ("none", "0", "0")
    if code != "0":
        raise RuntimeError(f"{rival.name}: exit {code}: {done.stderr.strip()[-800:]}")
    peak_mib = int(peak) / (_MIB if sys.platform == "darwin" else 1024)
    return Run(float(seconds), peak_mib, peak_mib)


def _reset_peak() -> float | None:
    """Make the kernel forget this process's peak; returns what it holds now, in MiB, or None where that cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(name: str) -> float | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def _summary(rival: Rival, runs: list[Run]) -> dict[str, Any]:
    rates = sorted(rival.amount / run.seconds for run in runs)
    summary = {
        "median": _significant(statistics.median(rates)),
        "p20": _significant(_quantile(rates, 0.2)),
        "p80": _significant(_quantile(rates, 0.8)),
        "seconds": _significant(statistics.median(run.seconds for run in runs)),
        "amount": rival.amount,
        "runs": len(runs),
    }
    for name in ("peak_mib", "grown_mib"):
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        if values:
            summary[name] = round(max(values), 1)
    if rival.note:
        summary["note"] = rival.note
    return summary


def _ratio(ours: Rival, our_runs: list[Run], other: Rival, other_runs: list[Run]) -> float:
    pairs = zip(our_runs, other_runs, strict=True)
    return statistics.median((ours.amount / a.seconds) / (other.amount / b.seconds) for a, b in pairs)


def _quantile(ordered: list[float], share: float) -> float:
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _significant(value: float) -> float:
    return float(f"{value:.4g}")


def _commit() -> str:
    def git(*argv: str) -> str:
        return subprocess.run(
            ["git", *argv], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _show(line: dict[str, Any]) -> None:
    print(f"{line['bench']} {line['case']}: {line['question']}")
    for name, found in line["rivals"].items():
        ratio = f"  ours is {line['ratios'][name]:,.4g}x" if name in line["ratios"] else ""
        memory = f"  peak {found['peak_mib']:,.0f} MiB (+{found['grown_mib']:,.0f})" if "grown_mib" in found else ""
        note = f"  ({found['note']})" if "note" in found else ""
        spread = f"[{found['p20']:,.4g} .. {found['p80']:,.4g}]"
        print(f"  {name:<24}{found['median']:>14,.4g} {line['unit']} {spread}{memory}{ratio}{note}")
    for name, fact in line["facts"].items():
        print(f"  {name}: {fact}")
    sys.stdout.flush()
