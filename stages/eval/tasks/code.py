"""Does the code that a model wrote pass its tests? Programs run in the sandbox; one that comes to its end passes.

pass@k is the chance that one of k samples passes, estimated without bias from n of them (Chen et al.,
<https://arxiv.org/abs/2107.03374>, section 2.1).
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from postmill.stages.eval.tasks.mark import Mark
from postmill.stages.eval.tasks.prompts import Item
from postmill.stages.eval.tasks.task import Task, Texts
from postmill.stages.progress import Meter, Progress
from postmill.stages.shared.sandbox.run import Kind, Limits, Ran, require, run_python


def pass_at_k(count: int, passed: int, k: int) -> float:
    """The chance that at least one of k samples, drawn from `count` of which `passed` pass, passes; k <= count."""
    assert 0 <= passed <= count and 0 < k <= count
    return 1.0 - math.comb(count - passed, k) / math.comb(count, k)


def mark_programs(
    task: Task, items: Sequence[Item], texts: Sequence[Sequence[str]], *, ks: Sequence[int], kind: Kind, time_s: float
) -> list[list[Mark]]:
    """pass@k of each item, from its samples; of one without samples, nothing.

    Raises ConfigError (77) if programs cannot be run in this kind of sandbox here.
    """
    require(kind)
    written = Texts(task)
    limits = Limits(time_s=time_s)
    programs = [
        written.text("program", item.row | {"prediction": text})
        for item, samples in zip(items, texts, strict=True)
        for text in samples
    ]
    meter = Meter(len(programs))

    def run(program: str) -> Ran:
        return run_python(program, limits=limits, kind=kind)

    ran: list[Ran] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for each in pool.map(run, programs):
            ran.append(each)
            Progress.say("eval", meter.of(len(ran), "programs"))
    ends, marks = iter(ran), []
    for samples in texts:
        marks.append(_marks([next(ends) for _ in samples], ks))
    return marks


def _marks(found: list[Ran], ks: Sequence[int]) -> list[Mark]:
    passed = sum(_passes(ran) for ran in found)
    said = "; ".join(_told(ran) for ran in found)
    return [Mark(metric=f"pass@{k}", value=pass_at_k(len(found), passed, k), said=said) for k in ks if found]


def _passes(ran: Ran) -> bool:
    return ran.status == "ok" and ran.has_ended


def _told(ran: Ran) -> str:
    """What happened, for people: of a failure, the last line."""
    if _passes(ran):
        return "passed"
    if ran.status == "ok":
        return "left before its tests"
    lines = ran.stderr.strip().splitlines()
    return f"{ran.reason}: {lines[-1][:100]}" if ran.status == "failed" and lines else ran.reason
