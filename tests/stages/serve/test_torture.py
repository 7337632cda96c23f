"""The server under load and abuse: crowds, clients that leave, hostile bodies, engines that die.

Each test says how many of what it saw (`pytest -rA` shows it); none looks at the clock.
"""

import asyncio
import collections
import gzip
import itertools
import json
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("uvicorn")

from http_server import Served, serving
from tiny_chat import write_chat_model

from postmill.stages.serve.openapi import BODIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[3]
SCHEMATHESIS = ROOT / ".cache" / "schemathesis" / "bin" / "schemathesis"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("torture") / "base", longest=2048)


def completion(**fields) -> dict:
    return {"model": "base", "prompt": "abc", "max_tokens": 4, "ignore_eos": True} | fields


async def start(url: str, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which a request has been sent."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n"
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    return reader, writer


async def ask(url: str, body: dict) -> tuple[int, bytes]:
    """Status, and everything after it."""
    reader, writer = await start(url, body)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer


def get(url: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def wait_until(holds) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come to rest")


def is_at_rest(server: Served) -> bool:
    worker = server.service.worker
    return worker.num_running == 0 and worker._engine.is_idle


def test_a_thousand_streams_at_once(folder):
    """Each is answered whole, or told when to come again."""
    with serving(folder, name="base", max_running=64, max_waiting=256) as server:

        async def crowd() -> list[tuple[int, bytes]]:
            body = completion(stream=True)
            return await asyncio.gather(*(ask(server.url, body) for _ in range(1000)))

        answers = asyncio.run(crowd())
        counts = collections.Counter(status for status, _ in answers)
        print(f"1,000 streams: {dict(counts)}")
        assert set(counts) <= {200, 429} and counts[200] >= 320
        for status, answer in answers:
            if status == 200:
                assert b"data: [DONE]" in answer and b'"finish_reason":"length"' in answer
            else:
                assert b"retry-after: " in answer and b"engine_overloaded" in answer
        wait_until(lambda: is_at_rest(server))
        assert get(f"{server.url}/health")[0] == 200


def test_a_thousand_clients_leave(folder):
    """In streams and before any answer: the work for them ends, and nothing is left of it."""
    with serving(folder, name="base", max_running=32, max_waiting=512) as server:

        async def leave(number: int, gate: asyncio.Semaphore) -> int:
            async with gate:
                is_stream = number % 2 == 0
                reader, writer = await start(server.url, completion(stream=is_stream, max_tokens=1500))
                if is_stream:
                    line = b""
                    while not line.startswith(b"data: "):
                        line = await reader.readline()
                        assert line, "the stream ended by itself"
                writer.transport.abort() if number % 4 < 2 else writer.close()
                return is_stream

        async def all_of_them() -> list[int]:
            gate = asyncio.Semaphore(40)
            return await asyncio.gather(*(leave(number, gate) for number in range(1000)))

        streams = sum(asyncio.run(all_of_them()))
        wait_until(lambda: is_at_rest(server))
        print(f"1,000 clients left: {streams} in a stream, {1000 - streams} before an answer")
        status, answer = asyncio.run(ask(server.url, completion()))
        assert status == 200 and b'"finish_reason":"length"' in answer


def test_fifty_engines_die(folder):
    """At any step: whoever waits is told, whoever comes is told, and the server says that it is not well."""
    draw, seen = random.Random(5), collections.Counter()
    for _ in range(50):
        with serving(folder, name="base") as server:
            engine, left = server.service.worker._engine, itertools.count(-draw.randint(0, 12))
            step = engine.step

            def dying(step=step, left=left):
                if next(left) >= 0:
                    raise RuntimeError("the engine is gone")
                return step()

            engine.step = dying

            async def clients(url: str) -> list[tuple[int, bytes]]:
                bodies = [completion(stream=number % 2 == 0, max_tokens=200) for number in range(6)]
                return await asyncio.gather(*(ask(url, body) for body in bodies))

            for status, answer in asyncio.run(clients(server.url)):
                told = b"engine_down" in answer
                seen["told in the stream" if status == 200 else status] += 1
                assert told and status in {200, 503}, answer[-300:]
                assert b"[DONE]" not in answer
            assert get(f"{server.url}/health")[0] == 503
            assert get(f"{server.url}/readyz")[0] == 503
    print(f"50 engines died under 300 requests: {dict(seen)}")


def hostile() -> list[tuple[str, bytes, dict[str, str]]]:
    """Route, body, headers: a few dozen kinds of abuse on every route that takes a body."""
    found = []
    deep = b'{"model": "base", "messages": ' + b'[{"content":' * 5000 + b"1" + b"}]" * 5000 + b"}"
    texts = [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe{}",
        b'{"model": NaN}',
        b'{"model": "base", "model": "base"}',
        b'{"model": "\\ud800", "prompt": "\\udfff"}',
        b'{"model": "base", "prompt": ' + b"9" * 5000 + b"}",
        b'{"model": "base", "max_tokens": 1e400}',
        b"[" * 100_000,
        deep,
        b'{"model": "' + b"a" * 1_000_000 + b'"}',
        b'{"model": "base", "prompt": "\\u0000\\u0000", "messages": "\\u0000", "input": "\\u0000", "tokens": [-1]}',
        b'{"__proto__": {}, "constructor": 1}',
    ]
    for route, text in itertools.product(BODIES, texts):
        found.append((route, text, JSON))
    for route in BODIES:
        found += [
            (route, gzip.compress(b" " * 10_000_000), JSON | {"content-encoding": "gzip"}),
            (route, b"a=b", {"content-type": "application/x-www-form-urlencoded"}),
        ]
    # what fits the schema and asks for too much, or for nonsense
    message = {"role": "user", "content": "x"}
    for body in (
        {"stop": ["x" * 256] * 17},
        {"n": 10**9},
        {"max_tokens": 2**31},
        {"logit_bias": {str(n): 100 for n in range(5000)}},
        {"logit_bias": {"-1": 1}},
        {"stop": [""]},
        {"top_k": 2**31, "min_p": 1},
        {"seed": -(2**63)},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "(a+)+$"}}}},
        {"stop_token_ids": [2**31]},
        {"user": "x" * 100_000},
    ):
        found.append(("/v1/completions", json.dumps(completion() | body).encode(), JSON))
        chat = {"model": "base", "messages": [message], "max_tokens": 2} | body
        found.append(("/v1/chat/completions", json.dumps(chat).encode(), JSON))
    for messages in ([], [{}], [{"role": "x"}], [message | {"content": [{"type": "image_url"}]}], [message] * 20_000):
        body = {"model": "base", "messages": messages, "max_tokens": 2}
        found += [(route, json.dumps(body).encode(), JSON) for route in ("/v1/chat/completions", "/v1/messages")]
    return found


def test_hostile_bodies_are_the_clients_fault(folder):
    with serving(folder, name="base", max_new_tokens=64, max_body_bytes=2_000_000) as server:
        counts = collections.Counter()
        for route, body, headers in hostile():
            try:
                request = urllib.request.Request(server.url + route, body, headers, method="POST")
                with urllib.request.urlopen(request) as answer:
                    status, told = answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    status, told = error.code, json.load(error)
                assert "error" in told, (route, body[:200])
            counts[status] += 1
            assert status < 500, (route, body[:200], told)
        print(f"{sum(counts.values())} hostile bodies: {dict(sorted(counts.items()))}")
        assert sum(counts.values()) >= 150 and counts[400] > 100
        wait_until(lambda: is_at_rest(server))


def test_sigterm_lets_twenty_finish(folder):
    command = [sys.executable, "-P", "-m", "postmill.cli.main", "serve", str(folder), "--port", "0", "--log", "none"]
    with subprocess.Popen([*command, "--drain-s", "300"], stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()

        async def clients() -> list[bytes]:
            open_ = await asyncio.gather(*(start(url, completion(stream=True, max_tokens=100)) for _ in range(20)))
            first = await asyncio.gather(*(reader.readuntil(b"data: ") for reader, _ in open_))
            process.send_signal(signal.SIGTERM)
            rest = await asyncio.gather(*(reader.read() for reader, _ in open_))
            for _, writer in open_:
                writer.close()
            return [one + two for one, two in zip(first, rest, strict=True)]

        answers = asyncio.run(clients())
        assert all(b"data: [DONE]" in answer and b'"finish_reason":"length"' in answer for answer in answers)
        assert process.wait() == 0


@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="make engines")
def test_schemathesis_finds_no_fault(folder, tmp_path):
    """Requests made from the server's own description, right and wrong: no 5xx, no answer that it does not name."""
    with serving(folder, name="base", max_new_tokens=8) as server:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        command = [str(SCHEMATHESIS), "run", f"{server.url}/openapi.json", "--checks", checks, "--max-examples", "40"]
        command += ["--seed", "1", "--generation-deterministic", "--no-color", "--suppress-health-check", "all"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,  # it leaves what it found
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        )
        print(done.stdout[-3000:])
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        wait_until(lambda: is_at_rest(server))
