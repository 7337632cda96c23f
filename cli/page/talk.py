"""Two models asked the same, side by side: servers of ours on free ports, which end with the page's server."""

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.page.guard import Refused
from postmill.cli.page.places import Folder
from postmill.io.manifest import MANIFEST, load_artifact
from postmill.io.model_folder import ADAPTER_CONFIG

_START_S = 600.0
_ANSWER_S = 600.0


class Open(msgspec.Struct, forbid_unknown_fields=True):
    """The models; `tuned` may be an adapter over `base`, and then one server holds both."""

    base: str
    tuned: str = ""


class Say(msgspec.Struct, forbid_unknown_fields=True):
    """What was said so far, ending with a question: each side has heard its own answers."""

    messages: dict[str, list[dict[str, str]]]
    max_tokens: int = 256
    temperature: float = 0.0


class _Side(msgspec.Struct):
    """Where one of the two answers: address of a server, and the model's name there."""

    url: str
    model: str


class Talks:
    """The servers that run, at most two."""

    def __init__(self, folder: Folder, env: dict[str, str]) -> None:
        self._folder, self._env = folder, env
        self._servers: list[subprocess.Popen[str]] = []
        self._sides: dict[str, _Side] = {}
        self._lock = threading.Lock()

    def open(self, ask: Open) -> dict[str, Any]:
        """Start servers, in place of those that ran. Raises Refused (400) with what a server said when it failed."""
        base, tuned = self._folder.model(ask.base), self._folder.model(ask.tuned) if ask.tuned else ""
        with self._lock:
            self._close()
            try:
                if tuned and _is_adapter(self._folder.root / tuned):
                    url = self._start(["serve", base, "--name", "base", "--adapter", f"tuned={tuned}"])
                    self._sides = {"base": _Side(url, "base"), "tuned": _Side(url, "tuned")}
                else:
                    for name, model in (("base", base), ("tuned", tuned)):
                        if model:
                            self._sides[name] = _Side(self._start(["serve", model, "--name", name]), name)
            except Refused:
                self._close()
                raise
            return {"sides": list(self._sides)}

    def say(self, ask: Say) -> dict[str, Any]:
        """The answer of each side. Raises Refused (409) where nothing runs."""
        sides = dict(self._sides)
        if not sides:
            raise Refused(409, "no model is loaded; choose one and start")
        with ThreadPoolExecutor(len(sides)) as pool:
            answers = pool.map(lambda name: _answer(sides[name], ask.messages.get(name, []), ask), sides)
            return {"answers": dict(zip(sides, answers, strict=True))}

    def close(self) -> dict[str, Any]:
        """End all servers."""
        with self._lock:
            self._close()
        return {}

    def _close(self) -> None:
        self._sides = {}
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
        self._servers.clear()

    def _start(self, argv: list[str]) -> str:
        """Start one server; its address, once it answers."""
        program = [sys.executable, "-P", "-m", "postmill.cli.main", *argv, "--port", "0", "--log", "none"]
        server = subprocess.Popen(
            program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=self._folder.root, env=self._env,
        )  # fmt: skip
        self._servers.append(server)
        assert server.stdout is not None and server.stderr is not None
        said: list[str] = []
        reader = threading.Thread(target=said.extend, args=(server.stderr,), daemon=True)
        reader.start()
        timer = threading.Timer(_START_S, server.kill)
        timer.start()
        url = server.stdout.readline().strip()
        timer.cancel()
        if not url:
            server.wait()
            reader.join(10)
            raise Refused(400, "".join(said[-3:]).strip() or f"{argv[1]}: the server ended without a word")
        return url


def _is_adapter(path: Path) -> bool:
    if (path / MANIFEST).is_file():
        return load_artifact(path).manifest.kind == "adapter"
    return (path / ADAPTER_CONFIG).is_file()


def _answer(side: _Side, messages: list[dict[str, str]], ask: Say) -> dict[str, str]:
    """`text`, or `error` in one line."""
    body = {"model": side.model, "messages": messages, "max_tokens": ask.max_tokens}
    data = json.dumps(body | {"temperature": ask.temperature}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{side.url}/v1/chat/completions", data, headers)  # noqa: S310  our own address
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as reply:  # noqa: S310
            text: str = json.load(reply)["choices"][0]["message"]["content"] or ""
            return {"text": text}
    except urllib.error.HTTPError as error:
        return {"error": str(json.load(error)["error"]["message"])}
    except OSError as error:
        return {"error": f"the server is gone: {error}"}
