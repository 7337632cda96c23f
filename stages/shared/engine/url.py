"""An engine behind a URL that speaks OpenAI's API.

Prompts are sent as token ids where the caller has them (`/v1/completions`), and then ids and log-probs have to come
back: our own server gives both (`return_token_ids`), and a server that does not is refused, never guessed from text.
vLLM gives ids and one log-prob a token, which is enough where that one is both what was drawn from and what a ratio
needs. Where only text matters, as in eval, messages are sent and the server's own template renders them
(`/v1/chat/completions`).
"""

import json
import random
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from postmill.io.errors import NO_INPUT, UNAVAILABLE, ArtifactError, StageError
from postmill.stages.shared.engine.endpoint import Endpoint
from postmill.stages.shared.engine.protocol import About, Constraint, Loaded, Reply, Request, Sampling, Token

_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Statuses after which the same request may be answered."""
_LONGEST_PAUSE_S = 60.0


class Refused(Exception):
    """The server does not answer this request, now or later."""


class UrlEngine:
    """A model of a server. `concurrency` requests are under way at a time."""

    def __init__(
        self, endpoint: Endpoint, *, concurrency: int, is_processed: bool = False, loaded: Loaded | None = None
    ) -> None:
        """`is_processed`: log-probs of vLLM's form are of what was drawn from. `loaded`: what the server should hold.

        Raises ArtifactError (66) for the key's file; StageError (69) where the server cannot be asked.
        """
        self._endpoint, self._concurrency, self._is_processed = endpoint, concurrency, is_processed
        self.root = endpoint.url.rstrip("/").removesuffix("/v1")
        self.key = _read_key(endpoint.key_file)
        self._lock = threading.Lock()
        self._next_start = 0.0
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0, "requests": 0, "retries": 0}
        """What was paid for."""
        card = self._card()
        self.name = str(card["id"])
        digest = card.get("digest")
        self.loaded = loaded or Loaded(digest=str(digest or f"url:{self.root}#{self.name}"), proof="claimed")
        length = card.get("max_model_len")
        self.about = About(
            kind="url",
            versions={},
            can=frozenset({"logp", "prompt_logp", "seed", "text"}),
            max_tokens=length if isinstance(length, int) else None,
            stop_ids=frozenset(),
        )

    def _card(self) -> dict[str, Any]:
        try:
            cards = self._ask("/v1/models", None).get("data")
        except Refused as error:
            raise StageError(f"{self.root}: {error}; check --url and --key-file", UNAVAILABLE) from None
        models = [card for card in cards if isinstance(card, dict) and "id" in card] if isinstance(cards, list) else []
        wanted = self._endpoint.url_model
        named = [card for card in models if not wanted or card["id"] == wanted]
        if not named:
            known = ", ".join(str(card["id"]) for card in models[:20]) or "none"
            raise StageError(f"{self.root}: no model {wanted!r}; there are {known}; see --url-model", UNAVAILABLE)
        return named[0]

    def load(self, folders: list[Path]) -> Loaded:
        """Weights of a server are its own. Raises StageError (69)."""
        raise StageError(f"{self.root}: the server's weights cannot be replaced from here", UNAVAILABLE)

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """In order of keys; a few rounds of what is under way at a time, so that a stop is soon heard."""
        ordered, size = sorted(requests, key=lambda request: request.key), 4 * self._concurrency
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def answer(self, batch: list[Request], sampling: Sampling) -> list[Reply]:
        """One reply a request; what the server refuses gets its error. Raises StageError (69) if it stays away."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(lambda request: self._reply(request, sampling), batch))

    def _reply(self, request: Request, sampling: Sampling) -> Reply:
        body: dict[str, Any] = {
            "model": self.name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": request.seed,
        }
        body |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
        body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        body |= {"min_p": sampling.min_p} if sampling.min_p else {}
        body |= {"stop": list(sampling.stop)} if sampling.stop else {}
        if sampling.constraint is not None:
            body["structured_outputs"] = _structured(sampling.constraint)
        try:
            if request.messages is not None:
                answer = self._ask("/v1/chat/completions", body | {"messages": request.messages})
                return _text_reply(request.key, answer)
            if request.text is not None:
                choice = _choice(self._ask("/v1/completions", body | {"prompt": request.text}))
                return Reply(key=request.key, text=str(choice.get("text")), finish=_finish(choice.get("finish_reason")))
            if request.prompt_logprobs is not None and not sampling.max_new_tokens:
                # some servers make at least one token
                asked = {"prompt": request.prompt_ids, "echo": True, "logprobs": 1, "max_tokens": 1}
                return _scored_reply(request, self._ask("/v1/completions", body | asked), self.root)
            exact = {
                "prompt": request.prompt_ids,
                "stop_token_ids": sorted(sampling.stop_ids),
                "return_token_ids": True,
                "logprobs": 0,
            }
            answer = self._ask("/v1/completions", body | exact)
            one_for_all = not sampling.is_truncated and (self._is_processed or sampling.temperature in (0, 1))
            return _exact_reply(request.key, answer, self.root, one_for_all=one_for_all)
        except Refused as error:
            return Reply(key=request.key, error=str(error))

    def tokens(self, text: str) -> list[int]:
        """Tokens of a text by the server's tokenizer, by vLLM's route. Raises StageError (69) where it has none."""
        try:
            found = self._ask("/tokenize", {"model": self.name, "prompt": text}).get("tokens")
        except Refused as error:
            raise StageError(f"{self.root}/tokenize: {error}; the server tells no tokens", UNAVAILABLE) from None
        if not isinstance(found, list):
            raise StageError(f"{self.root}/tokenize: the answer has no tokens", UNAVAILABLE)
        return [int(token) for token in found]

    def tell(self, route: str, body: dict[str, Any]) -> bool:
        """Whether the server does what it is told, once; what it says of that is not read."""
        try:
            with urllib.request.urlopen(self._request(route, body), timeout=self._endpoint.timeout_s):  # noqa: S310
                return True
        except OSError:
            return False

    def _request(self, route: str, body: dict[str, Any] | None) -> urllib.request.Request:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        return urllib.request.Request(self.root + route, data, headers)  # noqa: S310  http or https, checked

    def _ask(self, route: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """The answer's JSON. Raises Refused; StageError (69) when the last try failed too."""
        why = ""
        for number in range(self._endpoint.tries):
            self._wait_turn()
            pause = random.uniform(0.5, 1.0) * min(2.0**number, _LONGEST_PAUSE_S)  # noqa: S311  no secret
            try:
                with urllib.request.urlopen(self._request(route, body), timeout=self._endpoint.timeout_s) as answer:  # noqa: S310
                    decoded = json.loads(answer.read())
                    self._count(decoded)
                    return decoded if isinstance(decoded, dict) else {}
            except urllib.error.HTTPError as error:
                why = f"{error.code} {_message(error)}"
                if error.code not in _AGAIN or error.headers.get("x-should-retry") == "false":
                    raise Refused(why) from None
                pause = _named_pause(error.headers.get("retry-after")) or pause
            except (OSError, ValueError) as error:
                why = str(getattr(error, "reason", error))
            if number + 1 < self._endpoint.tries:
                with self._lock:
                    self.usage["retries"] += 1
                time.sleep(pause)
        raise StageError(f"{self.root}{route}: {why}, {self._endpoint.tries} times; is the server up?", UNAVAILABLE)

    def _wait_turn(self) -> None:
        """Keep to --rate."""
        if not self._endpoint.rate:
            return
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 1 / self._endpoint.rate
        time.sleep(max(0.0, start - time.monotonic()))

    def _count(self, found: Any) -> None:
        used = found.get("usage") if isinstance(found, dict) else None
        if isinstance(used, dict):
            with self._lock:
                self.usage["requests"] += 1
                for name in ("prompt_tokens", "completion_tokens"):
                    self.usage[name] += int(used.get(name) or 0)


def _read_key(name: str) -> str:
    if not name:
        return ""
    path = Path(name)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", NO_INPUT)
    line = path.read_text(encoding="utf-8").strip().partition("\n")[0].strip()
    return line.rpartition(":")[2]


def _named_pause(text: str | None) -> float | None:
    try:
        return min(max(float(text or ""), 0.1), _LONGEST_PAUSE_S)
    except ValueError:
        return None


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says, in whichever shape."""
    try:
        body = json.loads(error.read())
        told = body.get("error", body)
        return str(told.get("message", told) if isinstance(told, dict) else told)[:300]
    except (ValueError, AttributeError, OSError):
        return str(error.reason)


def _structured(constraint: Constraint) -> dict[str, Any]:
    """In vLLM's words, which our own server knows too."""
    if constraint.kind == "choice":
        return {"choice": json.loads(constraint.source)}
    return {"json" if constraint.kind == "json_schema" else constraint.kind: constraint.source}


def _finish(name: Any) -> Literal["stop", "length"]:
    return "length" if name == "length" else "stop"


def _choice(found: dict[str, Any]) -> dict[str, Any]:
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Refused("the server's answer holds no choice")
    return choices[0]


def _text_reply(key: str, found: dict[str, Any]) -> Reply:
    choice = _choice(found)
    text = choice.get("message", {}).get("content") or ""
    return Reply(key=key, text=str(text), finish=_finish(choice.get("finish_reason")))


def _scored_reply(request: Request, answer: dict[str, Any], root: str) -> Reply:
    """Log-probs of a prompt's tokens, in the columns of `/v1/completions`. Raises StageError (69) without them."""
    told = _choice(answer).get("logprobs") or {}
    logps, tops, count = told.get("token_logprobs"), told.get("top_logprobs"), len(request.prompt_ids)
    if not isinstance(logps, list) or not isinstance(tops, list) or min(len(logps), len(tops)) < count:
        raise StageError(f"{root}: the server tells no log-probs of prompts (echo with logprobs)", UNAVAILABLE)
    prompt = [
        Token(id=token, raw_logp=logp, top=[(-1, max([*top.values(), logp]))] if top and logp is not None else [])
        for token, logp, top in zip(request.prompt_ids, logps, tops, strict=False)
    ]
    return Reply(key=request.key, prompt=prompt, finish="length")


def _exact_reply(key: str, answer: dict[str, Any], root: str, *, one_for_all: bool) -> Reply:
    """Raises StageError (69) for an answer without ids or log-probs. `one_for_all`: see `_vllm_columns`."""
    choice = _choice(answer)
    names = ("token_ids", "token_logps", "token_sampled_logps", "token_raw_logps")
    columns = [choice.get(name) for name in names] if names[1] in choice else _vllm_columns(choice, one_for_all)
    if not all(isinstance(column, list) for column in columns):
        raise StageError(
            f"{root}: the server does not give back token ids with log-probs, which rollouts need; use postmill"
            " serve, or vLLM without --top-p, --top-k and --min-p",
            UNAVAILABLE,
        )
    ids, logp, sampled, raw = columns
    return Reply(
        key=key,
        ids=ids or [],
        logp=logp or [],
        sampled_logp=sampled or [],
        raw_logp=raw or [],
        finish=_finish(choice.get("finish_reason")),
    )


def _vllm_columns(choice: dict[str, Any], one_for_all: bool) -> list[Any]:
    """Ids, and their log-probs, which stand for all kinds where these are one number (`one_for_all`)."""
    told = choice.get("logprobs")
    logps = told.get("token_logprobs") if isinstance(told, dict) and one_for_all else None
    return [choice.get("token_ids"), logps, logps, []]
