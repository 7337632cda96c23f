"""The command as a process: it says where it answers, SIGTERM lets running requests finish, and mistakes end it."""

import json
import signal
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("torch")
pytest.importorskip("uvicorn")

from tiny_chat import write_chat_model

from postmill.io.errors import ConfigError, StageError
from postmill.stages.options import make
from postmill.stages.serve.config import Serve
from postmill.stages.serve.run import read_keys
from postmill.stages.shared.http import bind

SERVE = [sys.executable, "-P", "-m", "postmill.cli.main", "serve"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("process") / "base", longest=2048)


def test_sigterm_lets_running_requests_finish(folder):
    process = subprocess.Popen(
        [*SERVE, str(folder), "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        body = {"model": "base", "prompt": "abc", "max_tokens": 150, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            lines = [answer.readline()]
            process.send_signal(signal.SIGTERM)
            lines += answer.readlines()
        events = [line for line in lines if line.startswith(b"data: ")]
        assert events[-1] == b"data: [DONE]\n"
        assert json.loads(events[-2].removeprefix(b"data: "))["choices"][0]["finish_reason"] == "length"
        _, talk = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, talk
    logged = [json.loads(line) for line in talk.splitlines() if line.startswith("{")]
    assert [(line["route"], line["status"]) for line in logged] == [("/v1/completions", 200)]
    assert "abc" not in talk, "what was said is in no log"


def test_what_cannot_be_served_is_said_before_anything_is_loaded(folder, tmp_path):
    with pytest.raises(ValueError, match="can be reached by other machines; pass --key-file"):
        make(Serve, host="0.0.0.0")
    with bind("127.0.0.1", 0, "serve") as taken, pytest.raises(StageError, match="choose another --port"):
        taken.listen()
        bind("127.0.0.1", taken.getsockname()[1], "serve")
    keys = tmp_path / "keys"
    keys.write_text("# of the team\nann: a-long-key\n\nanother-key\n")
    assert read_keys(keys) == {"ann": "a-long-key", "line4": "another-key"}
    keys.write_text("short\n")
    with pytest.raises(ConfigError, match="keys:1: expected KEY or NAME:KEY, with 8 characters or more"):
        read_keys(keys)
    found = subprocess.run(
        [*SERVE, str(folder), "--port", "0", "--tool-format", "hermess"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert "--tool-format hermess: no such format" in found.stderr
