"""POST /v1/responses by the official client: the same answers as a chat's, in other words."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
httpx2 = pytest.importorskip("httpx2")
openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from http_server import serving  # noqa: E402
from scripted import Scripted  # noqa: E402
from tiny_chat import write_chat_model  # noqa: E402

WRITTEN = '<think>hm</think>so <tool_call>{"name":"find","arguments":{"x":1}}</tool_call>'
TOOLS = [{"type": "function", "name": "find", "parameters": {"type": "object"}}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_chat_model(tmp_path_factory.mktemp("responses") / "base")
    with serving(folder, max_new_tokens=100) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_text_is_answered_as_in_a_chat(client):
    asked = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(model="base", messages=asked, max_tokens=12, temperature=0)
    options = {"model": "base", "instructions": "be short", "max_output_tokens": 12, "temperature": 0}
    told = client.responses.create(input="hello", **options)
    assert told.output_text == chat.choices[0].message.content
    assert (told.status, told.store, told.usage.output_tokens) == ("incomplete", False, 12)
    assert told.incomplete_details.reason == "max_output_tokens"
    assert told.usage.input_tokens == chat.usage.prompt_tokens
    parts = client.responses.create(
        input=[{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}], **options
    )
    assert parts.output_text == told.output_text
    events = list(client.responses.create(input="hello", stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == told.output_text
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == told.output_text


def test_reasoning_and_calls_are_items(tmp_path_factory):
    folder = write_chat_model(
        tmp_path_factory.mktemp("items") / "base",
        template="{% for m in messages %}{{ m.content }}{% endfor %}{# <think></think><tool_call> #}",
    )
    with serving(folder) as found:
        ids = found.service.speaker.ids(WRITTEN, special=False)
        found.service.worker._engine._rows = Scripted(ids, torch)
        client = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)
        options = {"model": "base", "input": "hello", "tools": TOOLS, "max_output_tokens": len(ids), "temperature": 0}
        told = client.responses.create(**options)
        thought, said, call = told.output
        assert (thought.type, thought.content[0].text, said.content[0].text) == ("reasoning", "hm", "so ")
        assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "find", {"x": 1})
        assert told.usage.output_tokens_details.reasoning_tokens == 2
        events = list(client.responses.create(stream=True, **options))
        types = [event.type.removeprefix("response.") for event in events]
        assert types.count("output_item.added") == types.count("output_item.done") == 3
        (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
        assert json.loads(done.arguments) == {"x": 1}
        assert [item.type for item in events[-1].response.output] == ["reasoning", "message", "function_call"]
        # what came back is sent again, with the result of the call
        history = [{"role": "user", "content": "hello"}]
        history += [item.model_dump(exclude_none=True) for item in told.output]
        history.append({"type": "function_call_output", "call_id": call.call_id, "output": "found"})
        again = client.responses.create(**(options | {"input": history}))
        assert again.usage.input_tokens > told.usage.input_tokens


def test_the_form_of_a_text_is_kept(client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    told = client.responses.create(model="base", input="hello", text=form, max_output_tokens=100)
    assert json.loads(told.output_text)["n"] in (1, 2) and told.status == "completed"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"store": True}, "unsupported_parameter", "store"),
        ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
        ({"truncation": "auto"}, "unsupported_parameter", "truncation"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools.0.type"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "unsupported_parameter", "input.0.type"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": [{"role": "user", "content": 5}]}, "invalid_messages", "input.0"),
        ({"input": [{"role": "king", "content": "a"}]}, "invalid_messages", "messages.0.role"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"max_tokens": 5}, "unknown_parameter", "max_tokens"),
    ],
)
def test_what_cannot_be_is_400(server, fields, code, param):
    body = {"model": "base", "input": "hello", "max_output_tokens": 5} | fields
    refused = httpx2.post(f"{server.url}/v1/responses", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, code, param), error
