"""Answers held to a grammar: the model's own choice among the tokens that may come, and nothing else."""

import json
import re

import jsonschema
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from tiny_chat import write_chat_model  # noqa: E402

from postmill.stages.shared.engine.local import LocalEngine  # noqa: E402
from postmill.stages.shared.engine.protocol import Constraint, Reply, Request, Sampling  # noqa: E402

PROMPT = list(b"what is it")
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 120}, "ok": {"type": "boolean"}},
    "required": ["age", "ok"],
    "additionalProperties": False,
}


def constraint(kind, source):
    return Constraint(kind=kind, source=source if isinstance(source, str) else json.dumps(source))


def sampling(engine, what, **options):
    return Sampling(
        **({"max_new_tokens": 100, "stop_ids": engine.about.stop_ids} | options),
        constraint=what,
    )


def ask(engine, what, *, seed=0, **options):
    (reply,) = engine.answer([Request(key="a", prompt_ids=PROMPT, seed=seed)], sampling(engine, what, **options))
    assert reply.error is None
    return reply


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("constrain") / "base")


@pytest.fixture(scope="module")
def engine(folder):
    return LocalEngine([folder])


@pytest.fixture(scope="module")
def text(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda reply: tokenizer.decode(reply.ids[:-1] if reply.ids[-1] == 7 else reply.ids)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0, 1, 3])
def test_answers_are_of_the_kind_that_was_asked_for(engine, text, seed, temperature):
    """From a random model, whose own text is never JSON."""
    options = {"temperature": temperature, "seed": seed}
    reply = ask(engine, constraint("json_schema", SCHEMA), **options)
    assert reply.finish == "stop" and reply.ids[-1] == 7
    jsonschema.validate(json.loads(text(reply)), SCHEMA)
    assert re.fullmatch(r"[a-c]{2}-\d{3}", text(ask(engine, constraint("regex", r"[a-c]{2}-[0-9]{3}"), **options)))
    assert text(ask(engine, constraint("choice", ["yes", "no", "a.b"]), **options)) in {"yes", "no", "a.b"}
    assert text(ask(engine, constraint("grammar", 'start: "x" | "y" "z"'), **options)) in {"x", "yz"}
    assert text(ask(engine, constraint("grammar", 'root ::= "x" | "yz"'), **options)) in {"x", "yz"}


def test_an_answer_is_the_models_own_with_the_others_masked(engine, folder):
    """Greedy, each token is the likeliest of those that the regular expression, written out here, lets come."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reply = ask(engine, constraint("regex", "(ab|ba){3}"), temperature=0)
    said = ""
    for token, raw in zip(reply.ids, reply.raw_logp, strict=True):
        choices = {c for c in "ab" if len(said) % 2 == 0 or c != said[-1]} if len(said) < 6 else set()
        allowed = [tokenizer.convert_tokens_to_ids(c) for c in sorted(choices)] or [7]
        with torch.no_grad():
            ids = torch.tensor([PROMPT + tokenizer.encode(said)])
            logp_V = model(ids).logits[0, -1].log_softmax(-1)
        assert token == max(allowed, key=lambda each: float(logp_V[each]))
        assert raw == pytest.approx(float(logp_V[token]), abs=1e-4)
        said += tokenizer.decode([token])
    assert reply.ids[-1] == 7 and len(reply.ids) == 7


def test_log_probs_are_of_what_was_drawn_from(engine, folder):
    reply = ask(engine, constraint("choice", ["a", "b"]), temperature=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pair = tokenizer.convert_tokens_to_ids(["a", "b"])
    with torch.no_grad():
        logits_V = model(torch.tensor([PROMPT])).logits[0, -1]
    among = dict(zip(pair, logits_V[pair].log_softmax(-1).tolist(), strict=True))
    assert reply.sampled_logp[0] == pytest.approx(among[reply.ids[0]], abs=1e-4)
    assert reply.logp[0] == pytest.approx(float(logits_V.log_softmax(-1)[reply.ids[0]]), abs=1e-4)
    assert reply.sampled_logp[1] == pytest.approx(0, abs=1e-6), "nothing but the end could come"


def test_an_answer_is_the_same_alone_among_others_and_after_its_pages_were_taken(folder, engine):
    whats = [constraint("json_schema", SCHEMA), None, constraint("regex", "[a-z ]{20,40}"), constraint("choice", ["k"])]
    alone = [ask(engine, what, seed=n, max_new_tokens=60) for n, what in enumerate(whats)]
    small = LocalEngine([folder], cache_tokens=96)
    for number, what in enumerate(whats):
        small.submit(Request(key=str(number), prompt_ids=PROMPT, seed=number), sampling(small, what, max_new_tokens=60))
    found: dict[str, Reply] = {}
    while len(found) < len(whats):
        found |= {event.key: event for event in small.step() if isinstance(event, Reply)}
    assert [found[str(n)].ids for n in range(len(whats))] == [reply.ids for reply in alone]


def test_a_grammar_that_can_only_end_ends_before_the_least_length(engine, text):
    reply = ask(engine, constraint("choice", ["ab"]), min_new_tokens=50)
    assert (text(reply), reply.finish) == ("ab", "stop")


def test_without_a_token_that_ends_answers_the_grammar_does(engine, text):
    reply = ask(engine, constraint("regex", "[ab]{4}"), stop_ids=frozenset())
    assert re.fullmatch("[ab]{4}", text(reply)) and len(reply.ids) == 4 and reply.finish == "stop"


def test_a_grammar_may_begin_after_a_token(engine, text, folder):
    token = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("w")
    what = Constraint(kind="choice", source='["yes"]', after=token)
    reply = ask(engine, what, bias={token: 4.0}, temperature=1)
    before, after = text(reply).split("w", 1)
    assert "w" not in before and after == "yes"


@pytest.mark.parametrize(
    ("kind", "source", "why"),
    [
        ("json_schema", {"type": "string", "minLength": 5, "maxLength": 2}, "minLength (5) is greater"),
        ("json_schema", {"enum": []}, "Unsatisfiable"),
        ("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ("json_schema", {"type": "wrong"}, "Invalid type: wrong"),
        ("json_schema", {"$ref": "http://a/b"}, "not present"),
        ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
        ("json_schema", "[]", "expected an object"),
        ("json_schema", "{", "Expecting property name"),
        ("regex", "(", "unclosed group"),
        ("regex", "a(?=b)", "look-around"),
        ("regex", r"[^\s\S]", "no text fits it"),
        ("regex", "a" * 70_000, "larger than 65536 bytes"),
        ("choice", [], "expected texts"),
        ("grammar", "start: nothing", "nothing"),
    ],
)
def test_what_no_text_can_be_is_refused_in_one_line(engine, kind, source, why):
    what = constraint(kind, source)
    assert why in engine.constraint_fault(what)
    (reply,) = engine.answer([Request(key="a", prompt_ids=PROMPT, seed=0)], sampling(engine, what))
    assert why in (reply.error or "") and "\n" not in (reply.error or "")
    assert ask(engine, None).error is None
