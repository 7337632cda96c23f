"""Asking an engine for many replies: what an earlier run of the same work got is taken over, a stop is heard between
batches, and every request is answered exactly once."""

import math

from postmill.io.errors import FAILED, USAGE, ConfigError, StageError
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Out
from postmill.stages.shared.engine.protocol import Engine, Reply, Request, Sampling
from postmill.stages.shared.journal import Journal

_ROUNDING = 1e-3
"""How far above 0 the rounding of float16 can lift a log-prob."""


def ask_all(
    engine: Engine, requests: list[Request], sampling: Sampling, *, out: Out, name: str, what: str
) -> dict[str, Reply]:
    """A reply for each request, by key. `name` is the journal's, `what` the answers' name in progress.

    Batches are the same with and without what is taken over. Raises ConfigError (2) for pictures that the engine would
    answer without; StageError: (75) when the stage is to stop, (1) for
    an engine that answers something else than what it was asked, or what no model can answer.
    """
    if any(request.inputs is not None for request in requests) and "pictures" not in engine.about.can:
        raise ConfigError(
            f"engine {engine.about.kind} is given no pictures or sounds; use --engine transformers", USAGE
        )
    journal = Journal(out.checkpoints / name, f"{out.key} {engine.loaded.digest}")
    meter = Meter(len(requests), len(journal.replies))
    try:
        for batch in engine.batches(requests):
            if all(request.key in journal.replies for request in batch):
                continue
            if out.stop.requested:
                raise out.stop.stopped(f"{len(journal.replies)} of {len(requests)} answers are saved")
            replies = engine.answer(batch, sampling)
            _check(batch, replies, sampling)
            journal.add(replies)
            Progress.say(out.stage.name, meter.of(len(journal.replies), what))
    finally:
        journal.close()
    missing = [request.key for request in requests if request.key not in journal.replies]
    if missing:
        raise StageError(f"the engine left {len(missing)} of {len(requests)} requests unanswered: {missing[0]}", FAILED)
    return journal.replies


def _check(batch: list[Request], replies: list[Reply], sampling: Sampling) -> None:
    """Raises StageError (1) unless each request is answered once, in order, with what `sampling` allows."""
    asked, answered = [request.key for request in batch], [reply.key for reply in replies]
    if asked != answered:
        wrong = next(iter(sorted(set(answered) ^ set(asked))), answered[0] if answered else asked[0])
        raise StageError(f"the engine answered {len(answered)} of {len(asked)} requests, or others: {wrong}", FAILED)
    for reply in replies:
        is_checked = reply.error is None and reply.text is None  # text has no ids to look at
        fault = _fault(reply, sampling) if is_checked else ""
        if fault:
            raise StageError(f"the engine's answer to {reply.key} cannot be: {fault}", FAILED)


def _fault(reply: Reply, sampling: Sampling) -> str:
    """What is impossible in an answer, or an empty string."""
    count, most = len(reply.ids), sampling.max_new_tokens
    if not min(most, 1) <= count <= most:
        return f"{count} tokens, expected {min(most, 1)} to {most}"
    if not count == len(reply.logp) == len(reply.sampled_logp):
        return f"{count} tokens with {len(reply.logp)} and {len(reply.sampled_logp)} log-probs"
    for value in (*reply.logp, *reply.sampled_logp):
        if not math.isfinite(value) or value > _ROUNDING:
            return f"a log-prob of {value}"
    stops = [token in sampling.stop_ids for token in reply.ids] or [False]
    if any(stops[:-1]):
        return f"it goes on after {reply.ids[stops.index(True)]}, which ends answers"
    is_held = sampling.constraint is not None and reply.finish == "stop"  # a grammar can end an answer too
    finish = "stop" if stops[-1] or is_held or reply.stop is not None else "length"
    if reply.finish != finish or (finish == "length" and count < most):
        return f"{count} of {most} tokens, the last one is {reply.ids[-1]}, and it says {reply.finish}"
    return ""
