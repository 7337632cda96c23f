"""Every request that cannot be answered gets its status, a code for programs and the field to blame; never a 5xx."""

import json

import pytest

pytest.importorskip("torch")
httpx2 = pytest.importorskip("httpx2")
openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pytest.importorskip("uvicorn")

from http_server import serving  # noqa: E402
from tiny_chat import write_chat_model  # noqa: E402

KEY = "a-long-key"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    template = (
        "{% if messages[0].content == 'refuse' %}{{ raise_exception('no such thing') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>"
    )
    folder = write_chat_model(tmp_path_factory.mktemp("errors") / "base", template=template)
    with serving(folder, keys={"test": KEY}, max_new_tokens=100, max_n=4, max_body_bytes=100_000) as found:
        yield found


@pytest.fixture(scope="module")
def http(server):
    with httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}) as found:
        yield found


def chat(**fields):
    found = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2} | fields
    return {name: value for name, value in found.items() if value != "-"}


def said(*messages):
    return chat(messages=list(messages))


def tool(**function):
    return chat(tools=[{"type": "function", "function": function}])


USER = {"role": "user", "content": "hello"}
CHAT, TEXT, CLAUDE = "/v1/chat/completions", "/v1/completions", "/v1/messages"
CASES = {
    "not json": (CHAT, b"{", 400, "invalid_json", None),
    "not utf-8": (CHAT, b'{"model": "\xff"}', 400, "invalid_json", None),
    "not a number": (CHAT, b'{"model": "base", "temperature": NaN}', 400, "invalid_json", None),
    "infinite": (CHAT, b'{"model": "base", "messages": [], "temperature": 1e999}', 400, "invalid_json", None),
    "a key twice": (CHAT, b'{"model": "base", "model": "base"}', 400, "invalid_json", None),
    "half a surrogate pair": (CHAT, b'{"model": "\\ud800"}', 400, "invalid_json", None),
    "deep": (CHAT, b'{"model": ' + b"[" * 100 + b"]" * 100 + b"}", 400, "invalid_json", None),
    "very deep": (CHAT, b"[" * 50_000, 400, "invalid_json", None),
    "more than one value": (CHAT, b"{} {}", 400, "invalid_json", None),
    "empty": (CHAT, b"", 400, "invalid_json", None),
    "a list": (CHAT, b"[]", 400, "invalid_type", None),
    "no model": (CHAT, chat(model="-"), 400, "missing_required_parameter", "model"),
    "no messages": (CHAT, chat(messages="-"), 400, "missing_required_parameter", "messages"),
    "another type": (CHAT, chat(n="two"), 400, "invalid_type", "n"),
    "another type inside": (CHAT, chat(stop=["a", 1]), 400, "invalid_type", "stop[1]"),
    "unknown": (CHAT, chat(max_token=5), 400, "unknown_parameter", "max_token"),
    "unknown inside": (
        CHAT,
        chat(stream=True, stream_options={"usage": 1}),
        400,
        "unknown_parameter",
        "stream_options.usage",
    ),
    "too hot": (CHAT, chat(temperature=2.5), 400, "invalid_value", "temperature"),
    "too cold": (CHAT, chat(temperature=-1), 400, "invalid_value", "temperature"),
    "top_p": (CHAT, chat(top_p=0), 400, "invalid_value", "top_p"),
    "penalty": (CHAT, chat(presence_penalty=3), 400, "invalid_value", "presence_penalty"),
    "n of 0": (CHAT, chat(n=0), 400, "invalid_value", "n"),
    "n too large": (CHAT, chat(n=5), 400, "invalid_value", "n"),
    "too many likeliest": (CHAT, chat(logprobs=True, top_logprobs=21), 400, "invalid_value", "top_logprobs"),
    "likeliest of none": (CHAT, chat(top_logprobs=2), 400, "invalid_value", "top_logprobs"),
    "a seed too large": (
        CHAT,
        b'{"model":"base","messages":[{"role":"user","content":"a"}],"seed":%d}' % 2**70,
        400,
        "invalid_value",
        "seed",
    ),
    "a bias outside": (CHAT, chat(logit_bias={"256": 1}), 400, "invalid_value", "logit_bias"),
    "a bias of no token": (CHAT, chat(logit_bias={"a": 1}), 400, "invalid_value", "logit_bias"),
    "a bias too large": (CHAT, chat(logit_bias={"1": 101}), 400, "invalid_value", "logit_bias[...]"),
    "a stop outside": (CHAT, chat(stop_token_ids=[256]), 400, "invalid_value", "stop_token_ids"),
    "an empty stop": (CHAT, chat(stop=""), 400, "invalid_value", "stop"),
    "too many stops": (CHAT, chat(stop=["a"] * 17), 400, "invalid_value", "stop"),
    "a stop too long": (CHAT, chat(stop="a" * 257), 400, "invalid_value", "stop"),
    "no tokens wanted": (CHAT, chat(max_tokens=0), 400, "invalid_value", "max_tokens"),
    "more than is given": (CHAT, chat(max_tokens=101), 400, "invalid_value", "max_tokens"),
    "more least than most": (CHAT, chat(min_tokens=3), 400, "invalid_value", "min_tokens"),
    "too long": (CHAT, said({"role": "user", "content": "a" * 300}), 400, "context_length_exceeded", "messages"),
    "options of no stream": (
        CHAT,
        chat(stream_options={"include_usage": True}),
        400,
        "invalid_value",
        "stream_options",
    ),
    "no message": (CHAT, said(), 400, "invalid_value", "messages"),
    "a role of nobody": (CHAT, said({"role": "king", "content": "a"}), 400, "invalid_messages", "messages.0.role"),
    "a role that is a list": (CHAT, said({"role": [], "content": "a"}), 400, "invalid_messages", "messages.0.role"),
    "no content": (CHAT, said({"role": "user"}), 400, "invalid_messages", "messages.0.content"),
    "a number as content": (CHAT, said({"role": "user", "content": 5}), 400, "invalid_messages", "messages.0.content"),
    "a part of no kind": (
        CHAT,
        said({"role": "user", "content": [{}]}),
        400,
        "invalid_messages",
        "messages.0.content.0",
    ),
    "a picture": (
        CHAT,
        said({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
        400,
        "unsupported_parameter",
        "messages.0.content.0",
    ),
    "an answer to no call": (
        CHAT,
        said(USER, {"role": "tool", "tool_call_id": "x", "content": "a"}),
        400,
        "invalid_messages",
        "messages.1.tool_call_id",
    ),
    "calls that are none": (
        CHAT,
        said({"role": "assistant", "tool_calls": [1]}),
        400,
        "invalid_messages",
        "messages.0.tool_calls.0",
    ),
    "arguments that are no JSON": (
        CHAT,
        said({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}),
        400,
        "invalid_messages",
        "messages.0.tool_calls.0.function.arguments",
    ),
    "what the template refuses": (
        CHAT,
        said({"role": "user", "content": "refuse"}),
        400,
        "invalid_messages",
        "messages",
    ),
    "a tool without a name": (CHAT, tool(description="a"), 400, "invalid_tool", "tools.0.function.name"),
    "a tool's name": (CHAT, tool(name="a b"), 400, "invalid_tool", "tools.0.function.name"),
    "a schema that is none": (
        CHAT,
        tool(name="f", parameters=[]),
        400,
        "invalid_schema",
        "tools.0.function.parameters",
    ),
    "a hosted tool": (CHAT, chat(tools=[{"type": "web_search"}]), 400, "unsupported_parameter", "tools.0.type"),
    "a choice of tool": (CHAT, chat(tool_choice="required"), 400, "invalid_value", "tool_choice"),
    "a format": (CHAT, chat(response_format={"type": "yaml"}), 400, "invalid_value", "response_format.type"),
    "storing": (CHAT, chat(store=True), 400, "unsupported_parameter", "store"),
    "a template's reserved word": (
        CHAT,
        chat(chat_template_kwargs={"chat_template": "x"}),
        400,
        "invalid_value",
        "chat_template_kwargs",
    ),
    "no such model": (CHAT, chat(model="gpt-5"), 404, "model_not_found", "model"),
    "a suffix": (TEXT, {"model": "base", "prompt": "a", "suffix": "b"}, 400, "unsupported_parameter", "suffix"),
    "an empty list": (TEXT, {"model": "base", "prompt": []}, 400, "invalid_value", "prompt"),
    "an empty text": (TEXT, {"model": "base", "prompt": ""}, 400, "invalid_value", "prompt"),
    "a token outside": (TEXT, {"model": "base", "prompt": [1, 256]}, 400, "invalid_value", "prompt"),
    "a token below 0": (TEXT, {"model": "base", "prompt": [-1]}, 400, "invalid_value", "prompt"),
    "a token that is true": (TEXT, {"model": "base", "prompt": [True]}, 400, "invalid_value", "prompt.0"),
    "a mixture": (TEXT, {"model": "base", "prompt": ["a", 1]}, 400, "invalid_value", "prompt.0"),
    "nothing to make": (TEXT, {"model": "base", "prompt": "a", "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    "embeddings": ("/v1/embeddings", {"model": "base", "input": "a"}, 400, "unsupported_parameter", "model"),
    "tokens of nothing": ("/tokenize", {}, 400, "invalid_value", "prompt"),
    "text of no tokens": ("/detokenize", {"tokens": [999]}, 400, "invalid_value", "tokens"),
    "another route": ("/v1/images", {}, 404, "route_not_found", None),
    "too large": (CHAT, chat(user="a" * 100_001), 413, "request_too_large", None),
    "claude: no length": (CLAUDE, {"model": "base", "messages": [USER]}, 400, None, None),
    "claude: a role": (
        CLAUDE,
        {"model": "base", "max_tokens": 2, "messages": [{"role": "system", "content": "a"}]},
        400,
        None,
        None,
    ),
    "claude: a block": (
        CLAUDE,
        {"model": "base", "max_tokens": 2, "messages": [{"role": "user", "content": [{"type": "image"}]}]},
        400,
        None,
        None,
    ),
    "claude: no model": (CLAUDE, {"model": "opus", "max_tokens": 2, "messages": [USER]}, 404, None, None),
}


def test_there_are_enough_cases():
    assert len(CASES) >= 46


@pytest.mark.parametrize("name", CASES)
def test_errors(name, http):
    route, body, status, code, param = CASES[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = http.post(route, content=content, headers={"content-type": "application/json"})
    assert found.status_code == status, found.text
    assert found.headers["x-request-id"].startswith("req_")
    told = found.json()
    if route == CLAUDE:
        assert (told["type"], set(told["error"])) == ("error", {"type", "message"})
        assert told["error"]["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]
        return
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert (told["error"]["code"], told["error"]["type"]) == (code, "invalid_request_error")
    assert told["error"]["param"] == param
    assert told["error"]["message"]


def test_what_is_not_asked_as_it_should_be(http):
    found = http.get("/v1/chat/completions")
    assert (found.status_code, found.headers["allow"], found.json()["error"]["code"]) == (
        405,
        "POST",
        "method_not_allowed",
    )
    found = http.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert (found.status_code, found.json()["error"]["code"]) == (415, "unsupported_media_type")
    found = http.post(CHAT, content=b"{}", headers={"content-type": "application/json", "content-encoding": "gzip"})
    assert found.status_code == 415
    near = http.post(CHAT, json=chat(max_token=5)).json()["error"]["message"]
    assert near == "Unknown parameter: 'max_token'. Did you mean 'max_tokens'?"
    long = http.post(CHAT, json=said({"role": "user", "content": "a" * 300})).json()["error"]["message"]
    assert "maximum context length is 256 tokens" in long
    assert "309 tokens" in long


def test_clients_raise_their_own_errors(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=[USER])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="base", messages=[USER], temperature=3)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")
    claude = anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0)
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="opus", messages=[USER], max_tokens=2)


HOSTILE_VALUES = [None, True, -1, 10**30, 1e300, "a\x00b𝄞", [[]], [None], {"a": {}}, [{"a": 1}]]


def test_no_field_with_any_value_breaks_the_server(server, http):
    base = {
        CHAT: chat(),
        TEXT: {"model": "base", "prompt": "a", "max_tokens": 2},
        CLAUDE: {"model": "base", "messages": [USER], "max_tokens": 2},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [1]},
    }
    fields = {
        CHAT: ["messages", "tools", "stop", "logit_bias", "stream_options", "chat_template_kwargs", "tool_choice"],
        TEXT: ["prompt", "echo", "logprobs", "seed", "stop_token_ids"],
        CLAUDE: ["system", "messages", "tools", "tool_choice", "thinking", "stop_sequences"],
        "/tokenize": ["messages", "prompt", "tools"],
        "/detokenize": ["tokens"],
    }
    bodies = [(route, base[route] | {f: v}) for route, names in fields.items() for f in names for v in HOSTILE_VALUES]
    for value in HOSTILE_VALUES:
        bodies.append((CHAT, said({"role": "user", "content": value})))
        bodies.append((CHAT, said({"role": "assistant", "content": "a", "tool_calls": value}, USER)))
        bodies.append((CHAT, said({"role": "assistant", "tool_calls": [{"id": "a", "function": value}]})))
        bodies.append((CHAT, said({"role": "user", "content": [value]})))
        bodies.append((CLAUDE, base[CLAUDE] | {"messages": [{"role": "user", "content": [value]}]}))
        bodies.append(
            (
                CLAUDE,
                base[CLAUDE] | {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": value}]}]},
            )
        )
    assert len(bodies) > 150
    for route, body in bodies:
        found = http.post(route, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
        assert found.status_code < 500, (route, body, found.text)
    assert http.get("/health").status_code == 200
    assert server.service.worker.num_running == 0


def test_a_body_that_never_ends_and_a_client_that_says_nothing_harm_nobody(server, http):
    import socket

    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as silent, socket.create_connection(("127.0.0.1", port)) as half:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: %s\r\ncontent-length: 999\r\n\r\n{"
        half.sendall(head % KEY.encode())
        assert http.post(TEXT, json={"model": "base", "prompt": "a", "max_tokens": 2}).status_code == 200
        silent.close()
    assert http.get("/health").status_code == 200
