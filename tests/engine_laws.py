"""What every engine must do, as functions that assert it. `logits` is the model itself, asked in another way."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from postmill.stages.shared.engine.protocol import Delta, Event, Reply, Request, Sampling, StepEngine
from postmill.stages.shared.engine.stub import keep, log_softmax


class Subject(msgspec.Struct, kw_only=True):
    """An engine, what it should answer from, and weights to give it in place of its own."""

    engine: StepEngine
    logits: Callable[[list[int]], list[float]]
    own: list[Path]
    other: list[Path]


PROMPTS = [[5, 9, 2, 11], [3, 1], [5, 9, 2, 11], [7] * 9, [4], [8, 3, 10]]
SAMPLINGS = [
    Sampling(max_new_tokens=6, temperature=0.0),
    Sampling(max_new_tokens=6),
    Sampling(max_new_tokens=6, temperature=0.6, top_k=5),
    Sampling(max_new_tokens=6, temperature=1.4, top_p=0.7, min_p=0.05),
]


def requests(prompts: list[list[int]] = PROMPTS) -> list[Request]:
    return [Request(key=f"k{n:04d}", prompt_ids=ids, seed=100 + n) for n, ids in enumerate(prompts)]


def ask(engine: StepEngine, asked: list[Request], sampling: Sampling) -> dict[str, Reply]:
    replies = {}
    for batch in engine.batches(asked):
        answered = engine.answer(batch, sampling)
        assert [reply.key for reply in answered] == [request.key for request in batch], "one reply a request, in order"
        replies |= {reply.key: reply for reply in answered}
    return replies


def batches_are_a_function_of_the_requests(subject: Subject) -> None:
    asked = requests(PROMPTS * 5)
    batches = subject.engine.batches(asked)
    shuffled = random.Random(0).sample(asked, len(asked))
    assert subject.engine.batches(shuffled) == batches
    assert sorted(r.key for batch in batches for r in batch) == [r.key for r in asked]


def every_request_is_answered_once(subject: Subject) -> None:
    assert len(ask(subject.engine, requests(), SAMPLINGS[1])) == len(PROMPTS)


def answers_end_where_they_should(subject: Subject) -> None:
    free = ask(subject.engine, requests(), Sampling(max_new_tokens=6))
    stop = free["k0001"].ids[1]
    stopped = ask(subject.engine, requests(), Sampling(max_new_tokens=6, stop_ids=frozenset({stop})))
    for key, reply in stopped.items():
        assert len(free[key].ids) == 6
        end = free[key].ids.index(stop) + 1 if stop in free[key].ids else 6
        assert reply.ids == free[key].ids[:end]
        assert reply.finish == ("stop" if reply.ids[-1] == stop else "length")


def log_probs_are_the_models(subject: Subject) -> None:
    for sampling in SAMPLINGS:
        replies = ask(subject.engine, requests(), sampling)
        for request in requests():
            reply = replies[request.key]
            for t, token in enumerate(reply.ids):
                logits = subject.logits(request.prompt_ids + reply.ids[:t])
                logp = log_softmax(logits, sampling.temperature or 1.0)
                assert reply.logp[t] == pytest.approx(logp[token], abs=1e-4), "before truncation, at the temperature"
                if sampling.temperature == 0:
                    assert token == logits.index(max(logits)), "temperature 0 takes the likeliest"
                    assert reply.sampled_logp[t] == 0
                    continue
                kept = keep(logp, sampling)
                assert token in kept, "nothing is chosen that was cut off"
                total = math.fsum(math.exp(logp[word]) for word in kept)
                assert reply.sampled_logp[t] == pytest.approx(logp[token] - math.log(total), abs=1e-4)


def a_seed_decides_whatever_is_beside_it(subject: Subject) -> None:
    together = ask(subject.engine, requests(), SAMPLINGS[3])
    for request in reversed(requests()):
        alone = ask(subject.engine, [request], SAMPLINGS[3])
        assert as_good(subject, alone[request.key], together[request.key])


def tokens_are_drawn_as_often_as_they_are_likely(subject: Subject) -> None:
    """Pearson's chi-squared of 600 first tokens. Its mean is the number of cells less one, its deviation sqrt(2 x
    that): six deviations above are no chance."""
    count, sampling = 600, Sampling(max_new_tokens=1, temperature=0.5)
    replies = ask(subject.engine, requests([[4, 7]] * count), sampling)
    expected = [count * math.exp(value) for value in log_softmax(subject.logits([4, 7]), sampling.temperature)]
    drawn = [0] * len(expected)
    for reply in replies.values():
        drawn[reply.ids[0]] += 1
    common = [word for word, number in enumerate(expected) if number >= 5]
    cells = [(drawn[word], expected[word]) for word in common]
    cells.append((count - sum(d for d, _ in cells), max(count - sum(e for _, e in cells), 1e-9)))
    if cells[-1][1] < 5:  # too few for a cell of their own
        seen, wanted = cells.pop()
        cells[-1] = (cells[-1][0] + seen, cells[-1][1] + wanted)
    freedom = len(cells) - 1
    assert freedom >= 2
    chi = sum((d - e) ** 2 / e for d, e in cells)
    assert chi < freedom + 6 * math.sqrt(2 * freedom)


def prompts_that_cannot_be_answered_harm_no_other(subject: Subject) -> None:
    most = subject.engine.about.max_tokens
    assert most is not None
    replies = ask(subject.engine, requests([[], [1] * most, [3, 1]]), Sampling(max_new_tokens=2))
    assert [reply.finish == "error" and bool(reply.error) for _, reply in sorted(replies.items())] == [
        True,
        True,
        False,
    ]


def loading_changes_the_answers_and_loading_back_restores_them(subject: Subject) -> None:
    sampling = Sampling(max_new_tokens=6, temperature=0.0)
    engine, first = subject.engine, subject.engine.loaded
    before = ask(engine, requests(), sampling)
    assert engine.load(subject.other).digest != first.digest
    assert ask(engine, requests(), sampling) != before
    assert engine.load(subject.own) == first
    assert ask(engine, requests(), sampling) == before


def same(one: Reply, other: Reply) -> bool:
    """Whether all that was chosen, and every bit of its log-probs, is equal."""
    numbers = [(r.ids, r.logp, r.sampled_logp, r.raw_logp, r.finish, r.stop) for r in (one, other)]
    return numbers[0] == numbers[1]


def as_good(subject: Subject, one: Reply, other: Reply) -> bool:
    """Whether two answers to one request are the same: to the bit where the engine promises it, else up to rounding."""
    if "batch_invariant" in subject.engine.about.can:
        return same(one, other)
    is_equal = (one.ids, one.finish, one.stop) == (other.ids, other.finish, other.stop)
    return is_equal and one.logp == pytest.approx(other.logp, abs=1e-4)


def drive(engine: StepEngine, rounds: list[list[tuple[Request, Sampling]]], apart: int = 2) -> list[Event]:
    """Submit each round some steps after the one before, until all is answered; every event there was."""
    events: list[Event] = []
    for asked in rounds:
        for request, sampling in asked:
            engine.submit(request, sampling)
        for _ in range(apart):
            events += engine.step()
    while not engine.is_idle:
        events += engine.step()
    return events


def replies_of(events: list[Event]) -> dict[str, Reply]:
    found = [event for event in events if isinstance(event, Reply)]
    assert len({reply.key for reply in found}) == len(found), "one reply a request"
    return {reply.key: reply for reply in found}


def mixed() -> list[tuple[Request, Sampling]]:
    """Each request with settings of its own."""
    return [(request, SAMPLINGS[n % len(SAMPLINGS)]) for n, request in enumerate(requests(PROMPTS * 2))]


def each_request_is_answered_by_its_own_settings(subject: Subject) -> None:
    found = replies_of(drive(subject.engine, [mixed()]))
    assert len(found) == len(mixed())
    for request, sampling in mixed():
        assert as_good(subject, ask(subject.engine, [request], sampling)[request.key], found[request.key])


def who_comes_late_gets_the_same_answer(subject: Subject) -> None:
    expected = replies_of(drive(subject.engine, [mixed()]))
    late = [mixed()[start : start + 5] for start in range(0, len(mixed()), 5)]
    for apart in (1, 3):
        found = replies_of(drive(subject.engine, late, apart))
        assert all(as_good(subject, found[key], reply) for key, reply in expected.items())
        found = replies_of(drive(subject.engine, late[::-1], apart))
        assert all(as_good(subject, found[key], reply) for key, reply in expected.items())


def tokens_come_as_they_are_chosen(subject: Subject) -> None:
    events = drive(subject.engine, [mixed()])
    over: set[str] = set()
    tokens: dict[str, list[int]] = {}
    for event in events:
        assert event.key not in over, "nothing comes after the reply"
        if isinstance(event, Delta):
            tokens.setdefault(event.key, []).append(event.token.id)
        else:
            over.add(event.key)
            assert event.ids == tokens[event.key]


def who_is_aborted_ends_at_once_and_harms_no_other(subject: Subject) -> None:
    expected = replies_of(drive(subject.engine, [mixed()]))
    for request, sampling in mixed():
        subject.engine.submit(request, sampling)
    events = subject.engine.step() + subject.engine.step()
    gone = {"k0000", "k0002", "k0007", "nobody"}
    subject.engine.abort(gone)
    events += subject.engine.step()
    found = replies_of(events)
    assert {key for key, reply in found.items() if reply.finish == "abort"} == gone - {"nobody"}
    while not subject.engine.is_idle:
        events += subject.engine.step()
    for key, reply in replies_of(events).items():
        if key in gone:
            assert reply.ids == expected[key].ids[: len(reply.ids)]
            assert len(reply.ids) < len(expected[key].ids)
        else:
            assert as_good(subject, reply, expected[key])


def the_likeliest_tokens_are_the_models(subject: Subject) -> None:
    for sampling in SAMPLINGS[1:3]:
        asked = [(r, msgspec.structs.replace(sampling, top_logprobs=3)) for r in requests()]
        prompt_of = {request.key: request.prompt_ids for request, _ in asked}
        before: dict[str, list[int]] = {}
        for event in drive(subject.engine, [asked]):
            if not isinstance(event, Delta):
                continue
            answer = before.setdefault(event.key, [])
            raw = log_softmax(subject.logits(prompt_of[event.key] + answer), 1.0)
            likeliest = sorted(range(len(raw)), key=lambda word, raw=raw: -raw[word])[:3]
            assert [word for word, _ in event.token.top] == likeliest
            assert [value for _, value in event.token.top] == pytest.approx([raw[w] for w in likeliest], abs=1e-4)
            assert event.token.raw_logp == pytest.approx(raw[event.token.id], abs=1e-4)
            answer.append(event.token.id)


def given_tokens_are_scored(subject: Subject) -> None:
    if "prompt_logp" not in subject.engine.about.can:
        return
    prompts = [*PROMPTS, [5, 9, 2, 11, 6] * 9]
    asked = [msgspec.structs.replace(request, prompt_logprobs=2) for request in requests(prompts)]
    only = [(request, Sampling(max_new_tokens=0)) for request in asked[:4]]
    found = replies_of(drive(subject.engine, [only, [(request, SAMPLINGS[0]) for request in asked[4:]]]))
    for request in asked:
        reply = found[request.key]
        assert [token.id for token in reply.prompt] == request.prompt_ids
        assert reply.prompt[0].raw_logp is None, "nothing comes before the first"
        for t, token in enumerate(reply.prompt[1:], 1):
            raw = log_softmax(subject.logits(request.prompt_ids[:t]), 1.0)
            assert token.raw_logp == pytest.approx(raw[token.id], abs=1e-4)
            assert token.top[0][1] == pytest.approx(max(raw), abs=1e-4)


LAWS = [
    batches_are_a_function_of_the_requests,
    every_request_is_answered_once,
    answers_end_where_they_should,
    log_probs_are_the_models,
    a_seed_decides_whatever_is_beside_it,
    tokens_are_drawn_as_often_as_they_are_likely,
    prompts_that_cannot_be_answered_harm_no_other,
    loading_changes_the_answers_and_loading_back_restores_them,
    each_request_is_answered_by_its_own_settings,
    who_comes_late_gets_the_same_answer,
    tokens_come_as_they_are_chosen,
    who_is_aborted_ends_at_once_and_harms_no_other,
    the_likeliest_tokens_are_the_models,
    given_tokens_are_scored,
]
