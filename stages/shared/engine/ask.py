"""Asking an engine for many replies: what an earlier run of the same work got is taken over, a stop is heard between
batches, and every request is answered exactly once."""

from collections.abc import Callable

from postmill.io.errors import FAILED, StageError
from postmill.stages.progress import Progress
from postmill.stages.protocol import Out
from postmill.stages.shared.engine.protocol import Engine, Reply, Request, Sampling
from postmill.stages.shared.journal import Journal


def ask_all(
    engine: Engine, requests: list[Request], sampling: Sampling, *, out: Out, name: str, say: Callable[[int], str]
) -> dict[str, Reply]:
    """A reply for each request, by key. `name` is the journal's, `say` what progress shows of a number of replies.

    Batches are the same with and without what is taken over. Raises StageError: (75) when the stage is to stop, (1) for
    an engine that answers something else than what it was asked.
    """
    journal = Journal(out.work / name, out.key)
    try:
        for batch in engine.batches(requests):
            if all(request.key in journal.replies for request in batch):
                continue
            if out.stop.requested:
                raise out.stop.stopped(f"{len(journal.replies)} of {len(requests)} answers are saved")
            replies = engine.answer(batch, sampling)
            _check(batch, replies)
            journal.add(replies)
            Progress.say(out.stage.name, say(len(journal.replies)))
    finally:
        journal.close()
    missing = [request.key for request in requests if request.key not in journal.replies]
    if missing:
        raise StageError(f"the engine left {len(missing)} of {len(requests)} requests unanswered: {missing[0]}", FAILED)
    return journal.replies


def _check(batch: list[Request], replies: list[Reply]) -> None:
    asked, answered = [request.key for request in batch], [reply.key for reply in replies]
    if asked != answered:
        wrong = next(iter(set(answered) ^ set(asked)), answered[0] if answered else asked[0])
        raise StageError(f"the engine answered {len(answered)} of {len(asked)} requests, or others: {wrong}", FAILED)
    for reply in replies:
        if reply.error is None and not (len(reply.ids) == len(reply.logp) == len(reply.sampled_logp)):
            raise StageError(f"{reply.key}: {len(reply.ids)} tokens with {len(reply.logp)} log-probs", FAILED)
