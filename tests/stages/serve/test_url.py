"""A server as an engine: eval, rollout and chat get from our own server what they get from the model itself."""

import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("uvicorn")

from http_server import serving
from tiny_chat import write_chat_model

from postmill.cli.chat import run as chat
from postmill.io.errors import ConfigError, StageError
from postmill.io.rollouts import ROLLOUTS
from postmill.io.schemas import EVAL_ITEMS_V1, ROLLOUTS_V1
from postmill.io.table import TableReader
from postmill.stages.eval import config as evals
from postmill.stages.options import make
from postmill.stages.rollout import config as rollouts
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.engine.endpoint import Endpoint
from postmill.stages.shared.engine.protocol import Request, Sampling
from postmill.stages.shared.engine.url import UrlEngine
from postmill.stages.tokenize.config import STAGE as TOKENIZE
from postmill.stages.tokenize.config import Tokenize

KEY = "a-long-key"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("url") / "base")


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, keys={"test": KEY}) as found:
        (folder.parent / "key.txt").write_text(f"test:{KEY}\n")
        yield found


def rows(path, schema):
    return pa.Table.from_batches(list(TableReader(path, schema))).to_pylist()


def test_eval_asks_a_server_as_it_asks_the_model(server, folder, tmp_path):
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({"id": f"q{n}", "question": "w" * n}) + "\n" for n in range(1, 6))
    )
    for name, given, options in (
        ("local", {"tested": [str(folder)]}, {}),
        ("url", {}, {"url": server.url, "key_file": str(folder.parent / "key.txt")}),
    ):
        cfg = make(evals.Eval, max_new_tokens=9, batch_size=3, temperature=0.8, **options)
        run_stage(evals.STAGE, cfg, given | {"ask": [str(tmp_path / "q.jsonl")]}, tmp_path / name, Options(threads=1))
    local, url = (rows(tmp_path / name / "items.arrow", EVAL_ITEMS_V1) for name in ("local", "url"))
    for mine, other in zip(local, url, strict=True):
        assert (mine["output"], mine["finish_reason"]) == (other["output"], other["finish_reason"])
    with pytest.raises(ConfigError, match="or --url, one of them"):
        run_stage(evals.STAGE, evals.Eval(), {"ask": [str(tmp_path / "q.jsonl")]}, tmp_path / "no", Options())


def test_rollouts_of_a_server_have_the_models_ids_and_log_probs(server, folder, tmp_path):
    (tmp_path / "asks.jsonl").write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": f"say {n}"}]}) + "\n" for n in range(3))
    )
    given = {"data": [str(tmp_path / "asks.jsonl")], "model": [str(folder)]}
    run_stage(TOKENIZE, make(Tokenize, for_="prompt"), given, tmp_path / "prompts", Options(threads=1))
    given = {"prompts": [str(tmp_path / "prompts")], "policy": [str(folder)]}
    for name, options in (("local", {}), ("url", {"url": server.url, "key_file": str(folder.parent / "key.txt")})):
        cfg = make(rollouts.Rollout, samples=3, max_new_tokens=6, temperature=0.7, **options)
        run_stage(rollouts.STAGE, cfg, given, tmp_path / name, Options(threads=1))
    local, url = (rows(tmp_path / name / ROLLOUTS, ROLLOUTS_V1) for name in ("local", "url"))
    assert len(url) == 9
    assert url == local, "to the bit"


def test_chat_with_a_server(server, folder, capsys, monkeypatch):
    said = []
    for where in ([str(folder)], ["--url", server.url, "--key-file", str(folder.parent / "key.txt")]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nagain\n"))
        assert chat([*where, "--max-new-tokens", "6"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    with pytest.raises(StageError, match=r"401 The API key is missing or wrong.; check --url and --key-file"):
        chat(["--url", server.url])
    with pytest.raises(ConfigError, match="expected http"):
        chat(["--url", "localhost"])
    with pytest.raises(StageError, match=r"no model 'gpt'; there are base"):
        chat(["--url", server.url, "--url-model", "gpt", "--key-file", str(folder.parent / "key.txt")])


class Flaky(BaseHTTPRequestHandler):
    """Busy twice, then away once, then well; refuses what holds `bad`."""

    troubles: list[int]

    def do_GET(self):
        self.reply(200, {"data": [{"id": "m"}]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        if "bad" in body:
            self.reply(400, {"error": {"message": "no such thing"}})
        elif self.troubles:
            self.reply(self.troubles.pop(0), {"error": "busy"}, {"retry-after": "0.1"})
        else:
            choice = {"message": {"content": "well"}, "finish_reason": "stop"}
            self.reply(200, {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})

    def reply(self, status, body, headers=None):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"content-length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def flaky():
    Flaky.troubles = [429, 503, 500]
    found = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/v1"
    found.shutdown()


def test_a_busy_server_is_asked_again_and_what_it_refuses_is_an_error_of_its_own(flaky):
    engine = UrlEngine(Endpoint(url=flaky), concurrency=1)
    asked = [
        Request(key=key, prompt_ids=[], seed=0, messages=[{"role": "user", "content": text}])
        for key, text in (("a", "good"), ("b", "bad"))
    ]
    well, refused = engine.answer(asked, Sampling(max_new_tokens=4))
    assert (well.text, well.finish, refused.error) == ("well", "stop", "400 no such thing")
    assert engine.usage == {"prompt_tokens": 3, "completion_tokens": 2, "requests": 1, "retries": 3}
    Flaky.troubles = [503] * 9
    with pytest.raises(StageError, match="503 busy, 2 times; is the server up"):
        UrlEngine(Endpoint(url=flaky, tries=2), concurrency=1).answer(asked[:1], Sampling(max_new_tokens=4))
    Flaky.troubles = []
    by_ids = [Request(key="a", prompt_ids=[1], seed=0)]
    with pytest.raises(StageError, match="does not give back token ids with log-probs"):
        engine.answer(by_ids, Sampling(max_new_tokens=4))
