"""Environments of other projects play whole conversations: real packages, real servers, our commands around them.

The packages lie in `.cache/mcp`, `.cache/openenv` and `.cache/verifiers` (`make programs`). The engine is a server that
says what a script says, so that each conversation is known; all else is what people run.
"""

import contextlib
import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from commands import postmill

pytest.importorskip("torch", reason="tiny models are written with torch")
pytest.importorskip("transformers")

import tiny_model
from tiny_tokenizer import write_tokenizer

from postmill.io.manifest import load_artifact
from postmill.io.rollouts import REWARDS, ROLLOUTS
from postmill.io.schemas import REWARDS_V1, ROLLOUTS_V1
from postmill.io.table import TableReader
from postmill.stages.shared.engine.text import Speaker

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "environments"
STOP = 262
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SERVER = """
import os
from mcp.server.mcpserver import MCPServer
server = MCPServer("toy")
count = 0
@server.tool()
def add(a: int, b: int) -> int:
    "The sum."
    return a + b
@server.tool()
def tick() -> int:
    "How often this was called."
    global count
    count += 1
    return count
@server.tool()
def die() -> int:
    "End the server."
    os._exit(3)
server.run()
"""


def python_of(package: str) -> str:
    """Its own environment's Python, or a skip."""
    path = ROOT / ".cache" / package / "bin" / "python"
    if not path.exists():
        pytest.skip(f"{package}: run `make programs`")
    return str(path)


class Engine:
    """A server that answers a conversation's text with what `script` makes of it."""

    def __init__(self, speaker: Speaker, script: Callable[[str], str]) -> None:
        self.speaker, self.script = speaker, script
        self.turns: list[tuple[list[int], list[int]]] = []
        """Prompt and answer of each request."""

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        said = self.script(self.speaker.decode(prompt, special=True))
        ids = [*self.speaker.ids(said, special=False), STOP]
        self.turns.append((prompt, ids))
        logps = [-0.5] * len(ids)
        columns = {"token_ids": ids, "token_logps": logps, "token_sampled_logps": logps, "token_raw_logps": logps}
        return {"choices": [columns | {"finish_reason": "stop"}]}

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send({"data": [{"id": "scripted", "max_model_len": 8192}]})

            def do_POST(self) -> None:
                self._send(engine.complete(json.loads(self.rfile.read(int(self.headers["content-length"])))))

            def _send(self, found: dict[str, Any]) -> None:
                data = json.dumps(found).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing is printed."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()


class Played:
    """What `postmill rollout` and `postmill reward` made of conversations."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.engine = engine
        table = pa.Table.from_batches(list(TableReader(folder / "rollouts" / ROLLOUTS, ROLLOUTS_V1)))
        self.rows = table.to_pylist()
        self.metrics = load_artifact(folder / "rollouts").manifest.metrics

    def told(self, number: int) -> list[str]:
        """What a conversation was told behind its prompt."""
        found = json.loads(self.rows[number]["transcript"])
        return [message["content"] for message in found if message["role"] != "assistant"]

    def check_tokens(self) -> None:
        """Only answers are trained on, and the ids of a turn begin with those of the turn before."""
        turns, speaker = self.engine.turns, self.engine.speaker
        for row in self.rows:
            if row["error"]:
                continue
            ids = row["input_ids"]
            trained = [ids[span["start"] : span["end"]] for span in row["spans"]]
            for span in row["spans"]:
                assert (ids[: span["start"]], ids[span["start"] : span["end"]]) in turns
            said = [one["content"] for one in json.loads(row["transcript"]) if one["role"] == "assistant"]
            beside = [speaker.decode(part[:-1], special=True) for part in trained]
            assert len(said) == len(beside)
            assert all(text.endswith(shown) or "<tool_call>" in text for text, shown in zip(beside, said, strict=True))
            assert not any(text in part for text in self.told(self.rows.index(row)) for part in beside if len(text) > 9)
        assert self.metrics["forks"] == {}


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Played]:
    """Conversations of given rows with an environment, by our commands."""
    config = {"hidden_size": 16, "vocab_size": 263, "num_hidden_layers": 1, "max_position_embeddings": 8192}
    base = tiny_model.write_model(tmp_path / "base", eos_token_id=STOP, **config)
    (base / "chat_template.jinja").unlink()
    write_tokenizer(base)

    def run(env: str, asks: list[dict[str, Any]], script: Callable[[str], str], *options: str) -> Played:
        (tmp_path / "asks.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in asks))
        engine = Engine(Speaker([base]), script)
        words = ["--for", "prompt", "--agent-format", "hermes", "-o", "prompts"]
        done = postmill("tokenize", "asks.jsonl", "-m", base, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        with engine.serving() as url:
            words = ["--url", url, "--env", env, "--samples", "1", "--call-limit-s", "1500", "--threads", "1", *options]
            done = postmill("rollout", "prompts", "-m", base, "-o", "rollouts", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return Played(tmp_path, engine)

    return run


def rewards(folder: Path, function: str) -> list[float | None]:
    """What `postmill reward` gives, in the order of the questions."""
    done = postmill("reward", "rollouts", "--func", function, "-o", "rewards", cwd=folder)
    assert done.returncode == 0, done.stderr
    table = pa.Table.from_batches(list(TableReader(folder / "rewards" / REWARDS, REWARDS_V1)))
    found: list[float | None] = table["reward"].to_pylist()
    return found


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def last(text: str) -> str:
    """The last thing that was told, without what writes it."""
    return text.rpartition("<|im_start|>")[0].rpartition("<|im_start|>")[2]


def processes_with(words: str) -> list[str]:
    """Command lines that have these words."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if words in line]


def test_tools_of_an_mcp_server(play: Callable[..., Played], tmp_path: Path) -> None:
    python = python_of("mcp")
    (tmp_path / "toy.py").write_text(SERVER)

    def script(text: str) -> str:
        told, is_first = last(text), "<tool_response>" not in text
        if "twice" in text:
            return call("tick") * 2 if is_first else told.partition("</tool_response>")[0].split()[-1] + " and more"
        if "die" in text.partition("<|im_start|>user")[2]:
            return call("die")
        if "wrong" in text:
            return call("add", a="no") if is_first else "sorry"
        return call("add", a=2, b=3) if is_first else told.partition("</tool_response>")[0].split()[-1]

    asks = [
        {"messages": [{"role": "user", "content": ask}], "solution": "5"}
        for ask in ("sum", "die", "twice", "twice", "wrong")
    ]
    env = f"{python} {EXAMPLES / 'mcp_tools.py'} {python} {tmp_path / 'toy.py'}"
    played = play(env, asks, script, "--max-errors", "0.3")
    assert [bool(row["error"]) for row in played.rows] == [False, True, False, False, False]
    assert played.rows[1]["error"].startswith("environment: raised")
    played.check_tokens()
    assert '"name": "add"' in played.engine.speaker.decode(played.rows[0]["input_ids"], special=True)
    assert played.told(0) == ["5"]
    assert [played.told(2), played.told(3)] == [["1", "2"]] * 2  # each conversation has a server of its own
    assert played.told(4)[0].startswith("error: ")
    assert rewards(tmp_path, "exact")[0] == 1.0
    assert processes_with(str(tmp_path / "toy.py")) == []


def test_one_mcp_server_for_all(play: Callable[..., Played], tmp_path: Path) -> None:
    python = python_of("mcp")
    (tmp_path / "toy.py").write_text(SERVER)
    env = f"{python} {EXAMPLES / 'mcp_tools.py'} --shared {python} {tmp_path / 'toy.py'}"
    asks = [{"messages": [{"role": "user", "content": "count"}]}] * 2
    played = play(env, asks, lambda text: "done" if "<tool_response>" in text else call("tick"))
    played.check_tokens()
    assert sorted(played.told(0) + played.told(1)) == ["1", "2"]


@contextlib.contextmanager
def openenv_server() -> Iterator[str]:
    """The example's server on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([python_of("openenv"), str(EXAMPLES / "openenv_server.py"), str(port)])
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def guesses(text: str) -> str:
    """5 first, then what the hint allows."""
    told = last(text)
    return "7" if "Higher" in told else "3" if "Lower" in told else "5"


def test_an_openenv_server_plays_and_rewards(play: Callable[..., Played], tmp_path: Path) -> None:
    asks: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "Play."}], "reset": {"number": number}} for number in (5, 7, 9, "x")
    ]
    with openenv_server() as url:
        env = f"{python_of('openenv')} {EXAMPLES / 'openenv_env.py'} {url} --action guess --say hint"
        played = play(env, asks, guesses, "--max-errors", "0.3")
    played.check_tokens()
    assert [bool(row["error"]) for row in played.rows] == [False, False, False, True]
    assert [played.told(n) for n in range(3)] == [["Right."], ["Higher.", "Right."], ["Higher.", "Higher.", "Higher."]]
    assert json.loads(played.rows[0]["prompt"])[-1]["content"] == "Play.\n\nGuess a number from 1 to 9."
    assert rewards(tmp_path, "env") == [pytest.approx(1), pytest.approx(0.9), pytest.approx(-0.3), None]


def test_an_openenv_server_is_played_by_calls(play: Callable[..., Played], tmp_path: Path) -> None:
    asks = [{"messages": [{"role": "user", "content": "Play."}], "reset": {"number": 7}}]
    with openenv_server() as url:
        env = f"{python_of('openenv')} {EXAMPLES / 'openenv_env.py'} {url}"
        played = play(env, asks, lambda text: call("act", guess=guesses(text)))
    played.check_tokens()
    assert '"guess"' in played.engine.speaker.decode(played.rows[0]["input_ids"], special=True)
    assert ["Higher." in played.told(0)[0], "Right." in played.told(0)[1]] == [True, True]
    assert rewards(tmp_path, "env") == [pytest.approx(0.9)]


def test_a_taskset_of_verifiers_plays_and_rewards(play: Callable[..., Played], tmp_path: Path) -> None:
    asks = [{"messages": [{"role": "user", "content": "?"}], "task": number - 1} for number in (5, 7, 9, 100)]
    env = f"{python_of('verifiers')} {EXAMPLES / 'verifiers_env.py'} {EXAMPLES / 'verifiers_guess.toml'}"
    played = play(env, asks, guesses, "--max-errors", "0.3")
    played.check_tokens()
    assert [row["error"] for row in played.rows[:3]] == [None] * 3
    assert played.rows[3]["error"] == "environment: raised IndexError: list index out of range"
    assert [played.told(n) for n in range(3)] == [[], ["Higher."], ["Higher.", "Higher."]]
    assert json.loads(played.rows[0]["prompt"]) == [{"role": "user", "content": "Guess a number from 1 to 9."}]
    assert rewards(tmp_path, "env") == [pytest.approx(1), pytest.approx(2 / 3), pytest.approx(0), None]
