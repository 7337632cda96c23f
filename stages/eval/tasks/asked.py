"""Who answers a task: the model here with its tokenizer, or a server with its own."""

import functools
from collections.abc import Callable

import msgspec

from postmill.stages.eval.answers import seed_of
from postmill.stages.eval.config import Eval
from postmill.stages.protocol import Inputs, Out
from postmill.stages.shared.engine.ask import ask_all
from postmill.stages.shared.engine.local import LocalEngine
from postmill.stages.shared.engine.protocol import Reply, Request, Sampling
from postmill.stages.shared.engine.text import Speaker
from postmill.stages.shared.engine.url import UrlEngine

JOURNAL = "replies.jsonl"


def open_asked(cfg: Eval, inputs: Inputs, out: Out) -> "Asked":
    """Who is asked. Raises ArtifactError and StageError as loading a model does; StageError (69) for a server."""
    if cfg.endpoint.url:
        server = UrlEngine(cfg.endpoint, concurrency=cfg.batch_size)
        tokens = functools.lru_cache(maxsize=64)(server.tokens)  # choices of a row share what stands before them
        return Asked(engine=server, tokens=tokens, speaker=None, out=out)
    folders = [item.path for port in ("model", "tested") for item in inputs[port] if item.path is not None]
    engine = LocalEngine(folders, dtype=cfg.dtype, batch_size=cfg.batch_size, threads=out.threads)
    speaker = Speaker(folders)
    return Asked(engine=engine, tokens=speaker.ids, speaker=speaker, out=out)


class Asked(msgspec.Struct, kw_only=True):
    """Who is asked, and where answers are kept."""

    engine: LocalEngine | UrlEngine
    tokens: Callable[[str], list[int]]
    """Tokens of a text, with those that the tokenizer puts around one."""
    speaker: Speaker | None
    """Text and tokens of the model here; a server has its own."""
    out: Out

    @property
    def first_id(self) -> int | None:
        """What stands before a text that begins with nothing."""
        return None if self.speaker is None else self.speaker.first_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """What ends answers here; a server knows what ends its own."""
        return frozenset() if self.speaker is None else self.engine.about.stop_ids or self.speaker.eos_ids

    def request(self, cfg: Eval, context: str, key: str) -> Request | str:
        """What asks for an answer to a text, or why it cannot be asked."""
        messages, seed = [{"role": "user", "content": context}], seed_of(cfg.seed, key)
        if self.speaker is None:
            if cfg.prompt == "chat":
                return Request(key=key, prompt_ids=[], seed=seed, messages=messages)
            return Request(key=key, prompt_ids=[], seed=seed, text=context)
        prompt = self.speaker.ids(context) if cfg.prompt == "raw" else self.speaker.prompt_ids(messages)
        return prompt if isinstance(prompt, str) else Request(key=key, prompt_ids=prompt, seed=seed)

    def as_text(self, reply: Reply, stop: list[str]) -> Reply:
        """The reply with its text, up to the first of the texts that end answers."""
        if reply.error is not None:
            return reply
        text = reply.text
        if text is None:
            assert self.speaker is not None
            ends = reply.finish == "stop" and reply.ids[-1] in self.stop_ids
            text = self.speaker.text(reply.ids, is_stopped=ends)
        for end in stop:
            text = text.split(end)[0]
        return msgspec.structs.replace(reply, text=text)

    def all(self, requests: list[Request], sampling: Sampling) -> dict[str, Reply]:
        """Replies by key."""
        return ask_all(self.engine, requests, sampling, out=self.out, name=JOURNAL, what="answers")


def encode_pair(asked: Asked, context: str, ending: str) -> tuple[list[int], int]:
    """Tokens of both, and how many of them are the context's.

    Spaces at the end of the context move to what follows, so that words keep their tokens.
    """
    bare = context.rstrip()
    whole = asked.tokens(bare + context[len(bare) :] + ending)
    size = len(asked.tokens(bare)) if bare else 0
    if size == 0:  # something has to stand before the first token
        first = asked.first_id
        return ([first, *whole], 1) if first is not None and whole[:1] != [first] else (whole, 1)
    return whole, size
