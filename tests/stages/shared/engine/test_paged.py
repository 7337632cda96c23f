"""Continuous batching: pages that run out, prompts read before, an adapter for each request, texts that end an answer.

And models that pages do not serve.
"""

from types import SimpleNamespace

import engine_laws
import pytest
from engine_laws import drive, replies_of, same

torch = pytest.importorskip("torch", reason="generation needs torch")
transformers = pytest.importorskip("transformers")

import adapters  # noqa: E402
import peft  # noqa: E402
import tiny_model  # noqa: E402

from postmill.io.errors import ArtifactError  # noqa: E402
from postmill.stages.shared.engine import local as module  # noqa: E402
from postmill.stages.shared.engine import paged  # noqa: E402
from postmill.stages.shared.engine.local import LocalEngine  # noqa: E402
from postmill.stages.shared.engine.protocol import Request, Sampling  # noqa: E402
from postmill.stages.shared.engine.text import TextStream  # noqa: E402

PROMPTS = [list(range(3, 3 + length)) for length in (5, 30, 17, 16, 33, 5, 40)]
GREEDY = Sampling(max_new_tokens=20, temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.write_model(tmp_path_factory.mktemp("paged") / "base")


@pytest.fixture(scope="module")
def engine(folder):
    found = LocalEngine([folder])
    if "batch_invariant" not in found.about.can:
        pytest.skip("the C++ kernels are not built")
    return found


def asked(prompts=PROMPTS, sampling=GREEDY, **options):
    return [(Request(key=f"k{n}", prompt_ids=ids, seed=n, **options), sampling) for n, ids in enumerate(prompts)]


def alone(engine, pairs):
    found = {}
    for pair in pairs:
        engine._rows.forget("")  # nothing that was read before is taken over
        found |= replies_of(drive(engine, [[pair]]))
    return found


def test_a_request_that_gives_its_pages_back_gets_the_same_answer(folder, engine):
    small = LocalEngine([folder], cache_tokens=96)
    given_back = []
    rows = small._rows
    give_back = rows._give_back
    rows._give_back = lambda place: (given_back.append(place.live.answer[:]), give_back(place))
    found = replies_of(drive(small, [asked()]))
    assert any(0 < len(answer) < 20 for answer in given_back), "one was in the middle of its answer"
    expected = alone(engine, asked())
    assert all(same(found[key], reply) for key, reply in expected.items())
    assert rows._pages.num_available == rows._pages.count - 1, "every page is free again"
    too_long = replies_of(drive(small, [asked([[5] * 90])]))
    assert "prompt of 90 tokens leaves no room for 20 of 96" in too_long["k0"].error


def test_what_was_read_before_is_not_read_again_and_changes_no_bit(engine):
    expected = alone(engine, asked())
    first = replies_of(drive(engine, [asked()]))
    again = replies_of(drive(engine, [asked()]))
    assert [again[f"k{n}"].cached_tokens for n in range(len(PROMPTS))] == [0, 16, 16, 0, 32, 5, 32]
    for key, reply in expected.items():
        assert same(first[key], reply)
        assert same(again[key], reply)


def test_equal_prompts_go_on_from_one_reading(engine):
    sampling = Sampling(max_new_tokens=9)
    pairs = asked([PROMPTS[1]] * 5, sampling)
    expected = alone(engine, pairs)
    engine._rows.forget("")
    found = replies_of(drive(engine, [pairs]))
    assert len({tuple(reply.ids) for reply in found.values()}) > 1
    assert all(same(found[key], reply) for key, reply in expected.items())
    # the one that reads for all is aborted, and the others read themselves
    engine._rows.forget("")
    for request, settings in pairs:
        engine.submit(request, settings)
    engine.abort(["k0"])
    found = replies_of(drive(engine, []))
    assert found["k0"].finish == "abort"
    assert all(same(found[key], reply) for key, reply in expected.items() if key != "k0")


def lora(base, path, **options):
    config = peft.LoraConfig(lora_alpha=16, target_modules=["q_proj", "o_proj", "up_proj"], **options)
    adapters.save_adapter(path, base, config)
    return path


def test_every_request_has_an_adapter_of_its_own(folder, engine, tmp_path):
    made = {
        "one": lora(folder, tmp_path / "one", r=4, alpha_pattern={"layers.1.mlp.up_proj": 40}),
        "two": lora(folder, tmp_path / "two", r=3, use_rslora=True, rank_pattern={"q_proj": 5}),
    }
    digests = {name: engine.add_adapter(name, path) for name, path in made.items()}
    assert len(set(digests.values())) == 2
    names = [None, "one", "two", "one", None, "two"]
    pairs = [
        (Request(key=f"k{n}", prompt_ids=PROMPTS[n % 3], seed=0, adapter=name), GREEDY) for n, name in enumerate(names)
    ]
    found = replies_of(drive(engine, [pairs]))
    for (request, _), name in zip(pairs, names, strict=True):
        assert same(replies_of(drive(engine, [[(request, GREEDY)]]))[request.key], found[request.key])
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if name:
            model = peft.PeftModel.from_pretrained(model, str(made[name]))
        reply = found[request.key]
        with torch.no_grad():
            logits = model(torch.tensor([request.prompt_ids + reply.ids])).logits[0]
        logp = logits[len(request.prompt_ids) - 1 : -1].log_softmax(-1)
        expected = logp.gather(1, torch.tensor(reply.ids)[:, None])[:, 0].tolist()
        assert reply.logp == pytest.approx(expected, abs=1e-4)
    whole = LocalEngine([folder, made["one"]])
    assert whole.loaded.digest != engine.loaded.digest
    assert replies_of(drive(whole, [[(Request(key="k1", prompt_ids=PROMPTS[1], seed=0), GREEDY)]]))["k1"].ids == (
        found["k1"].ids
    )
    for request, settings in pairs[:2]:
        engine.submit(request, settings)
    engine.step()
    engine.remove_adapter("one")
    left = replies_of(drive(engine, []))
    assert left["k1"].error == "adapter 'one' was removed"
    assert same(left["k0"], found["k0"])
    assert "no adapter 'one'" in replies_of(drive(engine, [[pairs[1]]]))["k1"].error
    with pytest.raises(ArtifactError, match=r"use_dora true; merge it and serve the result"):
        engine.add_adapter("three", lora(folder, tmp_path / "three", use_dora=True))


@pytest.mark.parametrize("law", engine_laws.LAWS, ids=lambda law: law.__name__)
def test_padded_batches_obey(law, padded):
    law(padded)


@pytest.fixture(scope="module")
def padded(folder, tmp_path_factory):
    other = tiny_model.write_model(tmp_path_factory.mktemp("padded") / "other", seed=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1].tolist()

    class Padded(LocalEngine):
        def _can_page(self, model):
            return False

    return engine_laws.Subject(engine=Padded([folder], batch_size=64), logits=logits, own=[folder], other=[other])


SHAPES = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 16, "sliding_window": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_families_answer_as_transformers_does(shape, tmp_path, engine):
    config, kind, options = SHAPES[shape]
    torch.manual_seed(3)
    settings = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0,
    }  # fmt: skip
    model = getattr(transformers, kind)(getattr(transformers, config)(**(settings | options))).eval()
    model.save_pretrained(tmp_path / "m")
    found = LocalEngine([tmp_path / "m"])
    replies = replies_of(drive(found, [asked()]))
    for request, _ in asked():
        reply = replies[request.key]
        with torch.no_grad():
            logits = model(torch.tensor([request.prompt_ids + reply.ids])).logits[0].float()
        logp = logits[len(request.prompt_ids) - 1 : -1].log_softmax(-1)
        expected = logp.gather(1, torch.tensor(reply.ids)[:, None])[:, 0].tolist()
        assert reply.raw_logp == pytest.approx(expected, abs=1e-4)
    if shape in ("qwen3", "gemma3", "gemma2"):
        assert "batch_invariant" in found.about.can
        for pair in asked():
            assert same(replies_of(drive(found, [[pair]]))[pair[0].key], replies[pair[0].key])


def test_a_model_that_reads_pages_wrongly_is_answered_in_padded_batches(folder, monkeypatch, engine):
    attend = paged.Step.attend
    monkeypatch.setattr(
        paged.Step, "attend", lambda *given, scale, **options: attend(*given, scale=2 * scale, **options)
    )
    found = LocalEngine([folder])
    assert not {"batch_invariant", "adapters"} & found.about.can
    monkeypatch.undo()
    replies, expected = (replies_of(drive(each, [asked()])) for each in (found, engine))
    assert {key: reply.ids for key, reply in replies.items()} == {key: reply.ids for key, reply in expected.items()}


def letters(ids):
    return "".join(chr(97 + i) for i in ids)


@pytest.mark.parametrize(
    ("stop", "shown", "stopped"),
    [
        ((), "abcabdabcx", None),
        (("abd",), "abc", "abd"),
        (("zz", "cab"), "ab", "cab"),
        (("bda", "abd"), "abc", "abd"),
        (("xyz",), "abcabdabcx", None),
        (("a",), "", "a"),
        (("bd", "abd"), "abc", "abd"),
    ],
)
def test_text_that_is_shown_is_never_taken_back(stop, shown, stopped):
    stream = TextStream(letters, stop)
    parts = [stream.push(ord(letter) - 97) for letter in "abcabdabcx"] + [stream.finish()]
    assert ("".join(parts), stream.stopped) == (shown, stopped)


def test_a_character_is_shown_when_its_last_byte_is_there():
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    data = "é€𝄞".encode() + b"\xff" + b"z"
    parts = [stream.push(byte) for byte in data] + [stream.finish()]
    assert "".join(parts) == data.decode(errors="replace")
    assert [part for part in parts if part] == ["é", "€", "𝄞", "\ufffdz"]
    cut = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    assert [cut.push(byte) for byte in "€".encode()[:2]] == ["", ""]
    assert cut.finish() == "\ufffd"


def test_a_text_ends_an_answer(engine):
    free = replies_of(drive(engine, [asked(PROMPTS[:3])]))
    language = engine._language
    engine._language = SimpleNamespace(
        decoder=lambda sampling: letters if sampling.stop else None, guide=lambda _: None, fault=lambda _: ""
    )
    try:
        ids = free["k1"].ids
        stop = letters(ids[4:7])
        found = replies_of(
            drive(engine, [asked(PROMPTS[:3], Sampling(max_new_tokens=20, temperature=0, stop=(stop,)))])
        )
    finally:
        engine._language = language
    end = letters(ids).find(stop) + 3
    assert found["k1"].ids == ids[:end]
    assert (found["k1"].finish, found["k1"].stop) == ("stop", stop)


def test_pages_take_a_quarter_of_free_memory_at_most(monkeypatch, folder, engine):
    monkeypatch.setattr(module, "_free_bytes", lambda: 1_000_000)
    small = LocalEngine([folder])
    small.answer([Request(key="k", prompt_ids=[3, 4], seed=0)], GREEDY)
    assert 0.2 < small._rows.num_tokens * small._rows.bytes_per_token / 1_000_000 <= 0.25
    assert small._rows.num_tokens < engine._rows.num_tokens
