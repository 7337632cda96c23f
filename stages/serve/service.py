"""What all routes share: the models there are, prompts to ids, and answers as they come."""

import asyncio
import functools
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import msgspec

from postmill.io.digest import digest_bytes
from postmill.stages.serve import media
from postmill.stages.serve.adapters import Adapters, Named
from postmill.stages.serve.config import Serve
from postmill.stages.serve.errors import ApiError, draining, engine_down, invalid, overloaded, too_long
from postmill.stages.serve.metrics import Metrics
from postmill.stages.serve.worker import Worker
from postmill.stages.shared.agent_formats.parser import THINK, Parser, guess_format
from postmill.stages.shared.engine.protocol import About, Delta, Event, Reply, Request, Sampling, Token
from postmill.stages.shared.engine.text import Speaker, TextStream
from postmill.stages.shared.heads import LM, Head


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling where a request does not say: the model's own `generation_config.json`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class Prompt(NamedTuple):
    """A conversation as the model reads it."""

    ids: list[int]
    inputs: Callable[[], dict[str, Any]] | None = None
    """Makes what it reads of the pictures; None without any."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request in the engine's terms: one prompt, answered once for each seed."""

    id: str
    model: Named
    prompt_ids: list[int]
    inputs: Callable[[], dict[str, Any]] | None = None
    sampling: Sampling
    seeds: list[int]
    prompt_logprobs: int | None = None
    param: str = "messages"
    """Where the prompt stands in the request."""
    tools: list[dict[str, Any]] | None = None
    agent_format: str = ""
    """Finds calls in the text; empty where none are looked for."""
    reasons: bool = False
    """Whether reasoning is told apart."""
    is_reasoning: bool = False
    """Whether the prompt ends inside reasoning."""

    @property
    def keeps_special(self) -> bool:
        """Whether special tokens are shown in the text: some formats write calls with them."""
        return bool(self.agent_format)

    def parser(self) -> Parser:
        """For one answer."""
        return Parser(
            agent_format=self.agent_format, tools=self.tools, reasons=self.reasons, is_reasoning=self.is_reasoning
        )

    def call(self, index: int, number: int, call: dict[str, Any]) -> dict[str, Any]:
        """A call as OpenAI writes it; its id follows from the request, the answer and its place."""
        name = digest_bytes(f"{self.id}:{index}:{number}".encode())[7:31]
        function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
        return {"id": f"call_{name}", "type": "function", "function": function}


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """What one step adds to one answer. With `reply` it is the last one."""

    index: int
    text: str
    token: Token | None = None
    """None for the token that ended the answer, and where only text was waiting."""
    token_id: int | None = None
    reply: Reply | None = None


class Answer(msgspec.Struct, kw_only=True):
    """One answer, whole."""

    text: str = ""
    tokens: list[Token] = []
    reply: Reply | None = None

    def add(self, piece: Piece) -> None:
        """Take in what came."""
        self.text += piece.text
        if piece.token is not None:
            self.tokens.append(piece.token)
        if piece.reply is not None:
            self.reply = piece.reply


class Service:
    """A running server, without HTTP."""

    def __init__(  # noqa: PLR0917  every one of them is needed
        self,
        cfg: Serve,
        about: About,
        worker: Worker,
        speaker: Speaker,
        adapters: Adapters,
        defaults: Defaults,
        head: Head = LM,
    ) -> None:
        self.cfg, self.about, self.worker, self.speaker, self.defaults = cfg, about, worker, speaker, defaults
        self.adapters, self._head = adapters, head
        self.vocab = about.vocab_size or speaker.num_tokens
        guessed = guess_format(speaker.template) if cfg.tool_format == "auto" else cfg.tool_format
        self.agent_format = "" if cfg.tool_format == "off" else guessed
        self.reasons = THINK[1] in speaker.template
        self.reads_pictures = speaker.reads_pictures
        self.metrics = Metrics()
        self.started = int(time.time())
        self.is_draining = False
        self._promised: dict[str, int] = {}
        """Room that is kept for streams whose status is sent, until the engine has their requests."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="text")

    @property
    def models(self) -> dict[str, Named]:
        """What requests can name."""
        return self.adapters.models

    @property
    def fingerprint(self) -> str:
        """Of all weights that are served."""
        known = sorted((model.name, model.digest) for model in self.models.values())
        return "fp_" + digest_bytes(repr(known).encode())[7:23]

    @property
    def most_tokens(self) -> int:
        """Longest prompt and answer together."""
        return self.about.max_tokens or 1 << 20

    def model(self, name: str) -> Named:
        """Raises ApiError (404)."""
        return self.adapters.find(name)

    @property
    def head(self) -> str:
        """What stands on the model: lm makes text; pool and sequence say something of a whole one."""
        return self._head.kind

    def check_makes(self, what: Literal["text", "values"]) -> None:
        """Raises ApiError (400) for a model that makes no text, or nothing but text."""
        if (what == "text") != (self.head == "lm"):
            made = "makes text, no embeddings or scores" if what == "values" else "makes no text"
            raise ApiError(400, "unsupported_parameter", f"This model {made}.", "model")

    async def values(self, rows: list[list[int]]) -> list[list[float]]:
        """What a model that makes no text says of each text. Raises ApiError as `answers`."""
        self.check_open(len(rows))
        events: asyncio.Queue[Event] = asyncio.Queue()
        keys = {f"values-{secrets.token_hex(12)}-{number}": number for number in range(len(rows))}
        vectors: list[list[float]] = [[] for _ in rows]
        left, started = set(keys), time.monotonic()
        deadline = started + self.cfg.request_timeout_s
        for key, ids in zip(keys, rows, strict=True):
            self.worker.submit(Request(key=key, prompt_ids=ids, seed=0), Sampling(max_new_tokens=0), events)
        self.metrics.prompt_tokens += sum(map(len, rows))
        try:
            while left:
                event = await self._next(events, deadline)
                assert isinstance(event, Reply)
                left.discard(event.key)
                if event.error is not None:
                    raise self._refused(event.error)
                vectors[keys[event.key]] = event.values
            self.metrics.latency.add(time.monotonic() - started)
        finally:
            if left:
                self.worker.abort(list(left))
        return vectors

    def check_open(self, count: int = 1) -> None:
        """Raises ApiError (503, 429) where `count` more requests cannot be taken."""
        if self.worker.died.is_set():
            raise engine_down()
        if self.is_draining:
            raise draining()
        taken = self.worker.num_running + sum(self._promised.values())
        if taken + count > self.cfg.max_running + self.cfg.max_waiting:
            self.metrics.refused += 1
            raise overloaded(self.worker.num_running // self.cfg.max_running)

    def promise(self, ask: Ask) -> str:
        """Keep room for a stream until `answers` asks the engine, or `forgo` is told its id, which is returned.

        So a crowd is refused by its status, and not in the middle of streams. Raises as `check_open`.
        """
        self.check_open(len(ask.seeds))
        self._promised[ask.id] = len(ask.seeds)
        return ask.id

    def forgo(self, promised: str) -> None:
        """Keep no more room; again does nothing."""
        self._promised.pop(promised, None)

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """The tokenizer and templates, one at a time, apart from the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def encode(self, text: str, *, special: bool) -> list[int]:
        """Tokens of a text."""
        ids: list[int] = await self.in_thread(lambda: self.speaker.ids(text, special=special))
        return ids

    async def read(self, messages: list[dict[str, Any]], **options: Any) -> Prompt:
        """A conversation as the model's template writes it. Raises ApiError (400) for one that it refuses."""
        media.check_count(messages)

        def work() -> Prompt | str:
            try:
                if self.reads_pictures:
                    made = self.speaker.picture_prompt(media.decoded(messages, self.speaker.hear), **options)
                    if isinstance(made, str):
                        return made
                    return Prompt(made[0], functools.partial(dict, made[1]) if made[1] else None)
                ids = self.speaker.prompt_ids(messages, **options)
                return ids if isinstance(ids, str) else Prompt(ids)
            except ApiError:
                raise
            except Exception as error:  # a template is a program of somebody else's, and messages are too
                return f"chat template: {type(error).__name__}: {error}"

        found = await self.in_thread(work)
        if isinstance(found, str):
            raise ApiError(400, "invalid_messages", found, "messages")
        prompt: Prompt = found
        return prompt

    def is_reasoning(self, prompt_ids: list[int]) -> bool:
        """Whether the template has opened reasoning at the end of the prompt."""
        return self.reasons and self.speaker.decode(prompt_ids[-8:], special=True).rstrip().endswith(THINK[0])

    def budget(self, prompt_ids: list[int], asked: int | None, param: str) -> int:
        """How long an answer may be. Raises ApiError (400) where prompt and answer do not fit."""
        room = self.most_tokens - len(prompt_ids)
        if asked is not None and asked > self.cfg.max_new_tokens:
            raise invalid(
                "max_tokens", f"max_tokens {asked} is more than this server gives, {self.cfg.max_new_tokens}."
            )
        wanted = min(self.cfg.max_new_tokens, max(room, 1)) if asked is None else asked
        if not prompt_ids:
            raise invalid(param, "The prompt has no tokens.")
        if wanted > room:
            raise too_long(len(prompt_ids), wanted, self.most_tokens, param)
        return wanted

    def seeds(self, seed: int | None, count: int) -> list[int]:
        """One for each answer. The first has the request's own, so that it is what the engine says to that seed."""
        base = secrets.randbits(62) if seed is None else seed
        others = [int(digest_bytes(f"{base}:{n}".encode()).removeprefix("blake3:")[:15], 16) for n in range(1, count)]
        return [base & (2**63 - 1), *others]

    async def answers(self, ask: Ask) -> AsyncIterator[Piece]:
        """Tokens and text of all answers as they come. Whoever stops listening ends the work.

        Raises ApiError: 400 for what the engine refuses, 503 if it fails, 504 at the time limit.
        """
        self.forgo(ask.id)
        self.check_open(len(ask.seeds))
        events: asyncio.Queue[Event] = asyncio.Queue()
        keys = {f"{ask.id}-{index}": index for index in range(len(ask.seeds))}
        streams = [TextStream(self._decoder(ask), ask.sampling.stop) for _ in ask.seeds]
        counts = [0] * len(ask.seeds)
        started, left = time.monotonic(), len(keys)
        deadline = started + self.cfg.request_timeout_s
        model = self.adapters.hold(ask.model)
        for (key, index), seed in zip(keys.items(), ask.seeds, strict=True):
            request = Request(
                key=key,
                prompt_ids=ask.prompt_ids,
                inputs=ask.inputs,
                seed=seed,
                adapter=model.adapter,
                prompt_logprobs=ask.prompt_logprobs if index == 0 else None,
            )
            self.worker.submit(request, ask.sampling, events)
        self.metrics.prompt_tokens += len(ask.prompt_ids)
        try:
            while left:
                event = await self._next(events, deadline)
                index = keys[event.key]
                if isinstance(event, Reply):
                    left -= 1
                    yield self._last(index, event, streams[index])
                    continue
                if sum(counts) == 0:
                    self.metrics.first_token.add(time.monotonic() - started)
                counts[index] += 1
                self.metrics.generation_tokens += 1
                yield self._piece(index, event, streams[index], ask.sampling, counts[index])
            self.metrics.latency.add(time.monotonic() - started)
        finally:
            if left:
                self.metrics.aborted += 1
                self.worker.abort(list(keys))
            self.adapters.release(model)

    def _decoder(self, ask: Ask) -> Callable[[list[int]], str]:
        return lambda ids: self.speaker.decode(ids, special=ask.keeps_special)

    @staticmethod
    async def _next(events: asyncio.Queue[Event], deadline: float) -> Event:
        try:
            return await asyncio.wait_for(events.get(), deadline - time.monotonic())
        except TimeoutError:
            headers = {"x-should-retry": "false"}
            raise ApiError(504, "generation_timeout", "The time for this request is over.", headers=headers) from None

    @staticmethod
    def _piece(index: int, event: Delta, stream: TextStream, sampling: Sampling, count: int) -> Piece:
        token = event.token
        if token.id in sampling.stop_ids and count >= sampling.min_new_tokens:
            return Piece(index=index, text="", token_id=token.id)
        return Piece(index=index, text=stream.push(token.id), token=token, token_id=token.id)

    @staticmethod
    def _refused(error: str) -> ApiError:
        if error.startswith("the engine failed"):
            return engine_down()
        return ApiError(400, "invalid_value", f"The engine refuses this request: {error}.")

    def _last(self, index: int, reply: Reply, stream: TextStream) -> Piece:
        if reply.error is not None:
            raise self._refused(reply.error)
        self.metrics.cached_tokens += reply.cached_tokens
        return Piece(index=index, text=stream.finish(), reply=reply)

    async def whole(self, ask: Ask) -> list[Answer]:
        """All answers at once."""
        found = [Answer() for _ in ask.seeds]
        async for piece in self.answers(ask):
            found[piece.index].add(piece)
        return found
