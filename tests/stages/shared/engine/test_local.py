"""The engine on a tiny model: log-probs are the model's, samples of one prompt share its reading, done rows leave."""

import contextlib
import itertools

import pytest

torch = pytest.importorskip("torch", reason="generation needs torch")
transformers = pytest.importorskip("transformers")

import tiny_model  # noqa: E402

from postmill.stages.shared.engine.local import LocalEngine  # noqa: E402
from postmill.stages.shared.engine.protocol import Request, Sampling  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.write_model(tmp_path_factory.mktemp("engine") / "base")


@pytest.fixture(scope="module")
def engine(folder):
    return LocalEngine([folder], batch_size=8)


PROMPTS = [[5, 9, 2, 11], [3, 1], [5, 9, 2, 11], [7] * 9]


@contextlib.contextmanager
def watching(engine):
    """How many tokens each pass through the model reads, those that only fill it up left out."""
    seen = []

    def look(module, args, kwargs):
        paged = kwargs.get("paged")
        filling = 0 if paged is None else int((paged.places.owner_T == len(paged.places.table_RW) - 1).sum())
        seen.append(kwargs["input_ids"].numel() - filling)

    hook = engine._model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def requests(prompts=PROMPTS):
    return [Request(key=str(number), prompt_ids=ids, seed=100 + number) for number, ids in enumerate(prompts)]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probs_are_those_of_the_model_reading_prompt_and_answer(engine, folder, temperature):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    replies = engine.answer(requests(), Sampling(max_new_tokens=6, temperature=temperature))
    for request, reply in zip(requests(), replies, strict=True):
        ids = torch.tensor([request.prompt_ids + reply.ids])
        with torch.no_grad():
            logits_TV = model(ids).logits[0]
        logp_TV = (logits_TV / (temperature or 1.0)).log_softmax(-1)
        start = len(request.prompt_ids) - 1
        expected = [float(logp_TV[start + t, token]) for t, token in enumerate(reply.ids)]
        assert reply.logp == pytest.approx(expected, abs=1e-5)
        if temperature == 0:
            assert reply.ids == logits_TV[start:-1].argmax(-1).tolist()
            assert reply.sampled_logp == [0.0] * 6


def test_equal_prompts_are_read_once(engine):
    with watching(engine) as seen:
        engine.answer(requests([[5, 9, 2, 11]] * 6), Sampling(max_new_tokens=3))
    assert seen == [4, 6, 6]


def test_rows_that_are_done_leave_the_batch_and_change_no_other(engine):
    free = engine.answer(requests(), Sampling(max_new_tokens=8))
    stop = free[1].ids[2]
    with watching(engine) as seen:
        replies = engine.answer(requests(), Sampling(max_new_tokens=8, stop_ids=frozenset({stop})))
    assert seen[-1] < 4
    for before, reply in zip(free, replies, strict=True):
        end = before.ids.index(stop) + 1 if stop in before.ids else 8
        assert reply.ids == before.ids[:end]
        assert reply.finish == ("stop" if stop in before.ids else "length")
        assert reply.logp == pytest.approx(before.logp[:end], abs=1e-5)


def test_batches_are_a_function_of_the_requests_and_hold_equal_prompts_together(engine):
    asked = requests([[1, 2], [3], [1, 2], [4, 5, 6]] * 5)
    batches = engine.batches(asked)
    assert batches == engine.batches(asked[::-1])
    assert sorted(request.key for batch in batches for request in batch) == sorted(request.key for request in asked)
    assert max(map(len, batches)) == 8
    order = [tuple(request.prompt_ids) for batch in batches for request in batch]
    assert len([1 for a, b in itertools.pairwise(order) if a != b]) == 2


def test_prompts_that_cannot_be_answered_are_errors_of_their_own(engine):
    most = engine.about.max_tokens
    replies = engine.answer(requests([[], [1] * most, [2, 3]]), Sampling(max_new_tokens=2))
    assert replies[0].error == "the prompt has no tokens"
    assert f"leaves no room for 2 of {most}" in replies[1].error
    assert len(replies[2].ids) == 2


def test_the_digest_is_of_what_was_loaded(folder, tmp_path):
    other = tiny_model.write_model(tmp_path / "other")
    model = transformers.AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    model.save_pretrained(other)
    engine = LocalEngine([folder])
    first = engine.loaded
    assert first.proof == "memory"
    assert engine.load([other]).digest != first.digest
    assert engine.load([folder]) == first
