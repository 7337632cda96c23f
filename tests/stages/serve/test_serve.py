"""The official clients of OpenAI and Anthropic against a real server: what comes is what the engine says."""

import socket
import threading
import time

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
httpx2 = pytest.importorskip("httpx2")
openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pytest.importorskip("uvicorn")

import peft  # noqa: E402
from adapters import save_adapter  # noqa: E402
from http_server import serving  # noqa: E402
from scripted import Scripted  # noqa: E402
from tiny_chat import write_chat_model  # noqa: E402

from postmill.stages.shared.engine.local import LocalEngine  # noqa: E402
from postmill.stages.shared.engine.protocol import Request, Sampling  # noqa: E402

KEY = "a-long-key"
GREEDY = {"temperature": 0}
ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("serve") / "base")


@pytest.fixture(scope="module")
def lora(folder):
    config = peft.LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "up_proj"])
    save_adapter(folder.parent / "lora", folder, config)
    return folder.parent / "lora"


@pytest.fixture(scope="module")
def server(folder, lora):
    with serving(folder, adapters=(f"moss={lora}",), keys={"test": KEY}, max_new_tokens=200, max_n=4) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def claude(server):
    return anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def truth(folder):
    """What the model says greedily: ids, text and log-probs, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    engine = LocalEngine([folder])

    def ask(prompt, count, **sampling):
        ids = tokenizer(prompt).input_ids
        stop = Sampling(max_new_tokens=count, temperature=0, stop_ids=frozenset({7}), **sampling)
        (reply,) = engine.answer([Request(key="k", prompt_ids=ids, seed=0)], stop)
        shown = reply.ids[:-1] if reply.finish == "stop" else reply.ids
        return reply, tokenizer.decode(shown), len(ids)

    return ask


def post(server, route, body, key=KEY, **headers):
    content = body if isinstance(body, bytes) else None
    given = {"authorization": f"Bearer {key}"} | ({"content-type": "application/json"} if content is not None else {})
    with httpx2.Client(base_url=server.url) as http:
        return http.post(route, content=content, json=None if content is not None else body, headers=given | headers)


def test_a_chat_is_answered_whole_and_in_pieces(client, truth):
    reply, text, count = truth("<user>hello<a>", 12)
    whole = client.chat.completions.create(model="base", messages=ASK, max_tokens=12, temperature=0)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == reply.finish
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (count, len(reply.ids))
    chunks = list(
        client.chat.completions.create(
            model="base", messages=ASK, max_completion_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == reply.finish
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(reply.ids)
    assert len(chunks) > 6, "in pieces"


def test_log_probs_are_the_models(client, truth):
    reply, text, _ = truth("<user>hello<a>", 6)
    options = {"model": "base", "messages": ASK, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**options)
    content = whole.choices[0].logprobs.content
    assert [token.logprob for token in content] == reply.raw_logp[: len(content)]
    assert bytes(byte for token in content for byte in token.bytes).decode(errors="replace") == text
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob == max(top.logprob for top in token.top_logprobs)
    chunks = client.chat.completions.create(**options, stream=True)
    streamed = [token for c in chunks if c.choices[0].logprobs for token in c.choices[0].logprobs.content]
    assert streamed == content


def test_a_seed_repeats_an_answer_and_each_of_n_has_its_own(client):
    def ask(seed):
        found = client.chat.completions.create(
            model="base", messages=ASK, max_tokens=9, n=3, seed=seed, temperature=1.2
        )
        return [choice.message.content for choice in found.choices]

    first = ask(5)
    assert ask(5) == first
    assert len(set(first)) == 3
    assert ask(6) != first
    chunks = client.chat.completions.create(
        model="base", messages=ASK, max_tokens=9, n=3, seed=5, temperature=1.2, stream=True
    )
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == first


def test_a_stop_text_ends_the_answer_and_is_not_shown(client, truth):
    _, text, _ = truth("<user>hello<a>", 20)
    stop = text[8:11]
    for stream in (False, True):
        found = client.chat.completions.create(
            model="base", messages=ASK, max_tokens=20, temperature=0, stop=["zzz", stop], stream=stream
        )
        if stream:
            shown = "".join(chunk.choices[0].delta.content or "" for chunk in found)
        else:
            shown = found.choices[0].message.content
            assert found.choices[0].finish_reason == "stop"
        assert shown == text[: text.index(stop)]


def test_tools_reach_the_template_and_calls_their_answers(client, truth):
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "found"}]},
    ]
    _, text, count = truth("<user>hello<assistant><tool>found[find ]<a>", 5)
    found = client.chat.completions.create(model="base", messages=messages, tools=tools, max_tokens=5, temperature=0)
    assert (found.choices[0].message.content, found.usage.prompt_tokens) == (text, count)


def test_adapters_have_names_and_answer_otherwise(client, server, folder, lora):
    cards = client.models.list().data
    assert [card.id for card in cards] == ["base", "moss"]
    assert cards[0].digest.startswith("blake3:")
    assert cards[0].digest != cards[1].digest
    assert (cards[1].parent, client.models.retrieve("moss").id) == ("base", "moss")
    engine = LocalEngine([folder, lora])
    ids = transformers.AutoTokenizer.from_pretrained(folder)("<user>hello<a>").input_ids
    (reply,) = engine.answer([Request(key="k", prompt_ids=ids, seed=0)], Sampling(max_new_tokens=8, temperature=0))
    texts = {
        name: client.chat.completions.create(
            model=name, messages=ASK, max_tokens=8, temperature=0, extra_body={"return_token_ids": True}
        )
        for name in ("base", "moss")
    }
    assert texts["moss"].choices[0].token_ids == reply.ids[: len(texts["moss"].choices[0].token_ids)]
    assert texts["moss"].choices[0].message.content != texts["base"].choices[0].message.content


def test_completions_take_text_and_ids_and_score_the_prompt(client, truth, folder):
    reply, text, _ = truth("abc", 6)
    texts = client.completions.create(model="base", prompt=["abc", "abd"], max_tokens=6, temperature=0)
    assert texts.choices[0].text == text
    ids = transformers.AutoTokenizer.from_pretrained(folder)("abc").input_ids
    by_ids = client.completions.create(model="base", prompt=ids, max_tokens=6, temperature=0)
    assert by_ids.choices[0].text == text
    chunks = client.completions.create(model="base", prompt="abc", max_tokens=6, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    # what lm-eval asks: the prompt's own log-probs, and whether each token is the likeliest
    scored = client.completions.create(
        model="base", prompt="abc", max_tokens=1, temperature=0, echo=True, logprobs=1
    ).choices[0]
    assert scored.text == "abc" + scored.logprobs.tokens[-1]
    assert scored.logprobs.tokens[:3] == ["a", "b", "c"]
    assert scored.logprobs.text_offset == [0, 1, 2, 3]
    assert scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.token_logprobs[3] == reply.raw_logp[0] == max(scored.logprobs.top_logprobs[3].values())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    import torch

    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(logp[t, ids[t + 1]]) for t in range(2)]
    assert scored.logprobs.token_logprobs[1:3] == pytest.approx(expected, abs=1e-4)
    for name, value, top in zip(
        scored.logprobs.tokens[1:], scored.logprobs.token_logprobs[1:], scored.logprobs.top_logprobs[1:], strict=True
    ):
        assert top[name] == value, "the token itself is among them with the same number"
    only = client.completions.create(model="base", prompt="abc", max_tokens=0, echo=True, logprobs=0).choices[0]
    assert (only.text, only.logprobs.token_logprobs) == ("abc", scored.logprobs.token_logprobs[:3])


def test_tokens_of_texts_and_back(server, folder):
    ids = transformers.AutoTokenizer.from_pretrained(folder)("<user>hello<a>").input_ids
    found = post(server, "/tokenize", {"messages": ASK}).json()
    assert (found["tokens"], found["count"], found["max_model_len"]) == (ids, len(ids), 256)
    assert post(server, "/tokenize", {"prompt": "hé", "return_token_strs": True}).json()["count"] == 3
    assert post(server, "/detokenize", {"tokens": ids}).json() == {"prompt": "<user>hello<a>"}


def test_claude_is_answered_whole_and_in_pieces(claude, truth):
    reply, text, count = truth("<system>Be brief.<user>hello<a>", 12)
    options = {"model": "base", "system": "Be brief.", "messages": ASK, "max_tokens": 12, "extra_body": GREEDY}
    whole = claude.messages.create(**options)
    assert whole.content[0].text == text
    assert whole.stop_reason == ("max_tokens" if reply.finish == "length" else "end_turn")
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (count, len(reply.ids))
    with claude.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == text
        assert stream.get_final_message().usage.output_tokens == len(reply.ids)
    stopped = claude.messages.create(**options, stop_sequences=[text[3:5]])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[3:5])
    assert stopped.content[0].text == text[: text.index(text[3:5])]
    counted = claude.messages.count_tokens(model="base", messages=ASK)
    assert counted.input_tokens == len("<user>hello<a>")


def test_claude_sends_results_of_tools_and_new_fields(claude, truth):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "find", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "found"}]},
    ]
    tools = [{"name": "find", "input_schema": {"type": "object"}}]
    _, text, _ = truth("<user>hello<assistant><tool>found[find ]<a>", 5)
    found = claude.messages.create(
        model="base", messages=messages, tools=tools, max_tokens=5, extra_body=GREEDY | {"of_next_month": 1}
    )
    assert found.content[0].text == text


def test_every_route_but_health_asks_for_a_key(server):
    with httpx2.Client(base_url=server.url) as http:
        assert http.get("/health").json() == {"status": "ok"}
        for method, route in [
            ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/readyz"), ("POST", "/v1/chat/completions"),
            ("POST", "/tokenize"), ("POST", "/v1/messages"), ("GET", "/nothing"), ("PUT", "/v1/models/base"),
        ]:  # fmt: skip
            for headers in ({}, {"authorization": "Bearer wrong-key-here"}, {"x-api-key": ""}, {"authorization": KEY}):
                refused = http.request(method, route, headers=headers)
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    with pytest.raises(openai.AuthenticationError) as caught:
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong-key-here", max_retries=0).models.list()
    assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
    assert caught.value.request_id.startswith("req_")
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0).messages.count_tokens(
            model="base", messages=ASK
        )


def test_a_host_that_is_not_this_machine_is_refused(server):
    refused = post(server, "/v1/completions", {}, host="attacker.example")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")


def test_counts_are_kept(server, client):
    client.completions.create(model="base", prompt="abc", max_tokens=3)
    with httpx2.Client(base_url=server.url) as http:
        text = http.get("/metrics", headers={"x-api-key": KEY}).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(lines["postmill:generation_tokens_total"]) >= 3
    assert lines["postmill:num_requests_running"] == "0"
    assert int(lines['postmill:http_requests_total{route="/v1/completions",status="200"}']) >= 1


def wait_until(condition, seconds=40.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in time"
        time.sleep(0.01)


@pytest.fixture
def slow_engine(server, monkeypatch):
    """An answer of 200 tokens takes a minute: no client that leaves can be too late, however busy the machine is."""
    engine = server.service.worker._engine
    step = engine.step

    def slow_step():
        time.sleep(0.3)
        return step()

    monkeypatch.setattr(engine, "step", slow_step)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_the_work(server, slow_engine, stream):
    body = (
        b'{"model":"base","prompt":"abc","max_tokens":200,"ignore_eos":true,"stream":%s}' % str(stream).lower().encode()
    )
    before = server.service.metrics.aborted
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as line:
            line.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: %s\r\ncontent-length: %d\r\n\r\n%s"
                % (KEY.encode(), len(body), body)
            )
            wait_until(lambda: server.service.worker.num_running > 0)
            if stream:
                line.recv(100)
        wait_until(lambda: server.service.worker.num_running == 0)
    assert server.service.metrics.aborted == before + 3


def test_many_at_once_are_all_answered_alike(client):
    def ask(number, found):
        answer = client.completions.create(model="base", prompt="abc", max_tokens=12, seed=3, temperature=1)
        found[number] = answer.choices[0].text

    found: dict[int, str] = {}
    threads = [threading.Thread(target=ask, args=(number, found)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert len(set(found.values())) == 1


def test_who_comes_when_the_queue_is_full_is_told_when_to_come_again(folder):
    with serving(folder, max_running=1, max_waiting=1, max_new_tokens=240) as small:
        body = {"model": "base", "prompt": "a", "max_tokens": 240, "ignore_eos": True, "n": 2}
        thread = threading.Thread(target=post, args=(small, "/v1/completions", body))
        thread.start()
        wait_until(lambda: small.service.worker.num_running == 2)
        refused = post(small, "/v1/completions", body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "engine_overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        small.service.is_draining = True
        refused = post(small, "/v1/completions", body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        thread.join()


def test_calls_and_reasoning_reach_both_clients(tmp_path_factory):
    """A model whose bias makes it write one text: what it thinks, and a call."""
    import torch

    written = '<think>hm</think>so <tool_call>{"name":"find","arguments":{"x":1}}</tool_call>'
    folder = write_chat_model(
        tmp_path_factory.mktemp("calls") / "base",
        template="{{ messages[0].content }}{# <think></think><tool_call> #}",
    )
    with serving(folder) as found:
        ids = found.service.speaker.ids(written, special=False)
        found.service.worker._engine._rows = Scripted(ids, torch)
        client = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)
        tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
        options = {"model": "base", "messages": ASK, "tools": tools, "temperature": 0, "max_tokens": len(ids)}
        whole = client.chat.completions.create(**options).choices[0]
        assert (whole.message.content, whole.message.reasoning_content) == ("so ", "hm")
        assert whole.finish_reason == "tool_calls"
        (call,) = whole.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("find", '{"x": 1}')
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
        assert "".join(chunk.delta.content or "" for chunk in chunks) == "so "
        assert "".join(getattr(chunk.delta, "reasoning", None) or "" for chunk in chunks) == "hm"
        streamed = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        assert [(c.index, c.function.name, c.function.arguments) for c in streamed] == [(0, "find", '{"x": 1}')]
        assert chunks[-1].finish_reason == "tool_calls"
        claude = anthropic.Anthropic(base_url=found.url, api_key="none", max_retries=0)
        asked = {"model": "base", "messages": ASK, "max_tokens": len(ids), "extra_body": GREEDY}
        asked["tools"] = [{"name": "find", "input_schema": {"type": "object"}}]
        message = claude.messages.create(**asked)
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
        assert (message.content[2].name, message.content[2].input, message.stop_reason) == (
            "find",
            {"x": 1},
            "tool_use",
        )
        with claude.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
        assert final.content[2].input == {"x": 1}
        assert final.stop_reason == "tool_use"


def test_clients_that_write_prompts_themselves_are_told_of_the_tokenizer(server):
    told = httpx2.get(f"{server.url}/tokenizer_info", headers={"authorization": f"Bearer {KEY}"}).json()
    assert told["chat_template"] == server.service.speaker.template and "eos_token" in told
