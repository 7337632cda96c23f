"""What a request says of the form of its answer, by the official clients: the answer is of that form, or 400."""

import json
import re

import pytest

pytest.importorskip("torch")
httpx2 = pytest.importorskip("httpx2")
openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

import jsonschema  # noqa: E402
from http_server import serving  # noqa: E402
from tiny_chat import write_chat_model  # noqa: E402

ASK = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}}},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{# <tool_call> </think> #}"
    folder = write_chat_model(tmp_path_factory.mktemp("forms") / "base", template=template)
    with serving(folder, max_new_tokens=200) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chat(client, **options):
    return client.chat.completions.create(model="base", messages=ASK, max_tokens=150, **options).choices[0]


def test_answers_have_the_form_that_was_asked_for(client):
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        found = chat(client, response_format=form, seed=seed)
        assert found.finish_reason == "stop"
        jsonschema.validate(json.loads(found.message.content), SCHEMA)
    told = chat(client, response_format={"type": "json_object"}, temperature=0, logit_bias=no_letters(client))
    assert isinstance(json.loads(told.message.content), dict)
    for extra, pattern in (
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, r"\d{3}"),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"structured_outputs": {"grammar": 'start: "a" "b"'}}, "ab"),
        ({"guided_regex": "[xy]{2}"}, "[xy]{2}"),
        ({"guided_choice": ["a"]}, "a"),
    ):
        assert re.fullmatch(pattern, chat(client, extra_body=extra).message.content)
        plain = client.completions.create(model="base", prompt="hello", max_tokens=30, extra_body=extra)
        assert re.fullmatch(pattern, plain.choices[0].text)


def no_letters(client):
    """A bias by which a random model soon closes its object."""
    letters = httpx2.post(f"{str(client.base_url).removesuffix('/v1/')}/tokenize", json={"prompt": '{"}'}).json()
    return {str(token): 50 for token in letters["tokens"]}


def test_a_stream_has_the_form_too(client):
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA}}
    chunks = client.chat.completions.create(
        model="base", messages=ASK, max_tokens=100, response_format=form, stream=True, seed=1
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == chat(client, response_format=form, seed=1).message.content


def test_the_form_begins_after_reasoning(tmp_path_factory):
    """The prompt opens it, and one token closes it."""
    import tokenizers
    import transformers

    folder = write_chat_model(
        tmp_path_factory.mktemp("thinks") / "base", template="{{ messages[0].content }}<think>{# </think> #}"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("w")
    inner = json.loads((folder / "tokenizer.json").read_text())
    letter = tokenizer.convert_ids_to_tokens(end)
    inner["model"]["vocab"]["</think>"] = inner["model"]["vocab"].pop(letter)
    (folder / "tokenizer.json").write_text(json.dumps(inner))
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_tokens(["</think>"])
    made.save(str(folder / "tokenizer.json"))
    with serving(folder) as found:
        client = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)
        options = {"logit_bias": {str(end): 3}, "extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}}
        told = chat(client, **options)
    assert told.message.content in {"yes", "no"}
    assert len(told.message.reasoning_content) > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_call_can_be_forced(client, server, seed):
    found = chat(client, tools=TOOLS, tool_choice="required", seed=seed, temperature=1)
    (call,) = found.message.tool_calls
    assert found.finish_reason == "tool_calls" and not found.message.content
    assert call.function.name in {"find", "stop"}
    if call.function.name == "find":
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    choice = {"type": "function", "function": {"name": "find"}}
    (call,) = chat(client, tools=TOOLS, tool_choice=choice, seed=seed).message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    claude = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    asked = {"model": "base", "messages": ASK, "max_tokens": 150}
    asked["tools"] = [{"name": "find", "input_schema": SCHEMA}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "find"}):
        message = claude.messages.create(**asked, tool_choice=choice)
        (block,) = message.content
        assert (block.type, block.name, message.stop_reason) == ("tool_use", "find", "tool_use")
        jsonschema.validate(block.input, SCHEMA)


def test_strict_tools_hold_calls_and_leave_text_free(server):
    """By the engine: after the mark of a call, only calls of the tools can come; before it, anything can."""
    from postmill.stages.serve.tool_choice import tool_constraint

    strict = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}]
    found = tool_constraint(server.service, [], strict)
    assert found is not None
    engine = server.service.worker._engine
    assert engine.constraint_fault(found[0]) == ""
    matcher = engine._language._compiler()._compile(found[0])
    ids = server.service.speaker.ids
    good = 'so <tool_call>\n{"name": "find", "arguments": {"n": 5}}\n</tool_call> done'
    for text, count in ((good, len(good)), (good.replace("5", "x"), good.index("5")), ("<tool_cal", 9)):
        assert matcher.deep_copy().validate_tokens(ids(text, special=False)) == count


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        (
            {"response_format": {"type": "json_schema"}},
            "missing_required_parameter",
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}},
            "invalid_schema",
            "response_format",
        ),
        ({"structured_outputs": {"regex": "("}}, "invalid_schema", "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "schema_too_complex", "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "invalid_value", "structured_outputs.choice"),
        ({"structured_outputs": {"yaml": "a"}}, "unknown_parameter", "structured_outputs.yaml"),
        ({"guided_json": "{"}, "invalid_schema", "guided_json"),
        ({"guided_choice": []}, "invalid_schema", "guided_choice"),
        ({"guided_regex": "a", "ignore_eos": True}, "invalid_value", "ignore_eos"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tool_choice": "sometimes"}, "invalid_value", "tool_choice"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "no"}}, "tools": TOOLS},
            "invalid_value",
            "tool_choice",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "strict": True, "parameters": {"not": {}}}}]},
            "invalid_schema",
            "tools",
        ),
    ],
)
def test_a_form_that_cannot_be_is_400(server, fields, code, param):
    body = {"model": "base", "messages": ASK, "max_tokens": 5} | fields
    refused = httpx2.post(f"{server.url}/v1/chat/completions", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, code, param)
    assert "\n" not in error["message"]
    well = httpx2.post(f"{server.url}/v1/chat/completions", json={"model": "base", "messages": ASK, "max_tokens": 2})
    assert well.status_code == 200
