"""A request that is being answered: what it has so far, and when it ends."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from postmill.stages.shared.engine.constrain import Guide
from postmill.stages.shared.engine.protocol import Reply, Request, Sampling, Token
from postmill.stages.shared.engine.text import TextStream


class Row(NamedTuple):
    """What decides the next token of an answer, beside its logits."""

    sampling: Sampling
    seed: int
    answer: Sequence[int] = ()
    """The tokens chosen so far."""
    prompt: Sequence[int] = ()
    position: int | None = None
    """Number of the token in the answer; without it, the length of `answer`."""
    guide: Guide | None = None
    """Says which tokens may come."""


class Live:
    """One request under way. `decode` turns ids to text, for stop texts; `guide` holds the answer to a grammar."""

    def __init__(
        self,
        request: Request,
        sampling: Sampling,
        decode: Callable[[list[int]], str] | None,
        guide: Guide | None = None,
    ) -> None:
        self.request, self.sampling, self._guide = request, sampling, guide
        self.answer: list[int] = []
        self.tokens: list[Token] = []
        self.prompt: list[Token] = []
        self.cached_tokens = 0
        self._stream = TextStream(decode, sampling.stop) if decode is not None and sampling.stop else None

    @property
    def is_scored_only(self) -> bool:
        return self.sampling.max_new_tokens == 0

    def row(self) -> Row:
        """What decides its next token."""
        return Row(self.sampling, self.request.seed, self.answer, self.request.prompt_ids, guide=self._guide)

    def take(self, token: Token) -> Reply | None:
        """Add a token; the reply if it was the last one."""
        self.answer.append(token.id)
        self.tokens.append(token)
        if self._stream is not None:
            self._stream.push(token.id)
        sampling, count = self.sampling, len(self.answer)
        if count >= sampling.min_new_tokens:
            if token.id in sampling.stop_ids:
                return self.reply("stop")
            if self._stream is not None and self._stream.stopped is not None:
                return self.reply("stop", self._stream.stopped)
        if self._guide is not None:
            self._guide.take(token.id)
            if self._guide.is_over or token.id in sampling.stop_ids:
                return self.reply("stop")
        return self.reply("length") if count >= sampling.max_new_tokens else None

    def reply(self, finish: Literal["stop", "length", "abort"], stop: str | None = None) -> Reply:
        """What there is, as the last word."""
        return Reply(
            key=self.request.key,
            ids=self.answer,
            logp=[token.logp or 0.0 for token in self.tokens],
            sampled_logp=[token.sampled_logp or 0.0 for token in self.tokens],
            raw_logp=[token.raw_logp or 0.0 for token in self.tokens],
            finish=finish,
            stop=stop,
            prompt=self.prompt,
            cached_tokens=self.cached_tokens,
        )
