"""An engine without weights, for tests of what stands on engines: exact, quick, able to fail and to lie on request.

Its model is a table of logits, a function of the weights' name and the last two tokens. Sampling is written out in
plain Python, apart from `choose.py`, so that each is a check of the other.
"""

import math
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from postmill.io.digest import digest_bytes
from postmill.io.errors import UNAVAILABLE, StageError
from postmill.stages.shared.engine.live import Live
from postmill.stages.shared.engine.philox import philox, uniform
from postmill.stages.shared.engine.protocol import (
    About,
    Constraint,
    Delta,
    Event,
    Loaded,
    Reply,
    Request,
    Sampling,
    StepEngine,
    Token,
)

VOCAB = 13


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong; by default nothing."""

    seconds: float = 0.0
    """Wait this long before each batch."""
    dies_at: int | None = None
    """Raise at this batch, counted from 0, as an engine does whose process is gone."""
    refused: frozenset[str] = frozenset()
    """Answer these keys with an error."""
    dropped: frozenset[str] = frozenset()
    """Leave these keys out of the reply."""
    doubled: frozenset[str] = frozenset()
    """Answer these keys twice."""
    not_a_number: frozenset[str] = frozenset()
    """Report NaN as log-prob of the first token of these keys."""
    keeps_weights: bool = False
    """Claim to have loaded weights, and answer with the old ones."""
    wrong_temperature: bool = False
    """Sample at temperature 1 whatever was asked, and report log-probs of what was asked."""
    renormalised: bool = False
    """Report log-probs after truncation as those before it."""
    one_generator: bool = False
    """Draw from one stream of numbers for all requests, so that an answer depends on its neighbours."""
    ignores_stop_ids: bool = False
    """Go on after a token that ends an answer."""
    too_long: bool = False
    """Answer one token more than allowed."""


class StubEngine:
    """Answers from the table of the weights that it was last given."""

    def __init__(self, folders: list[Path], faults: Faults | None = None, *, batch_size: int = 8) -> None:
        self._faults = faults or Faults()
        self._batch_size = batch_size
        self._num_batches, self._num_drawn = 0, 0
        self._weights = 0
        self._lives: dict[str, Live] = {}
        self._done: list[Event] = []
        self.loaded = self._hold(folders)
        self.about = About(
            kind="stub",
            versions={},
            can=frozenset({"logp", "raw_logp", "seed", "load", "repeatable", "steps", "batch_invariant"}),
            max_tokens=64,
            stop_ids=frozenset({2}),
        )

    def _hold(self, folders: list[Path]) -> Loaded:
        digest = digest_bytes("\n".join(map(str, folders)).encode())
        self._weights = int(digest.removeprefix("blake3:")[:15], 16)
        return Loaded(digest=digest, proof="claimed")

    def load(self, folders: list[Path]) -> Loaded:
        """Take the table that belongs to these names."""
        before = self._weights
        self.loaded = self._hold(folders)
        if self._faults.keeps_weights:
            self._weights = before
        return self.loaded

    def logits(self, ids: list[int]) -> list[float]:
        """Of the token after `ids`, which is not empty."""
        context = (ids[-1], ids[-2] if len(ids) > 1 else VOCAB, 0)
        key = (self._weights & 0xFFFFFFFF, self._weights >> 32)
        return [6 * philox((*context, word), key)[0] / 2**32 for word in range(VOCAB)]

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """In order of keys."""
        ordered = sorted(requests, key=lambda request: request.key)
        return [ordered[start : start + self._batch_size] for start in range(0, len(ordered), self._batch_size)]

    def answer(self, batch: list[Request], sampling: Sampling) -> list[Reply]:
        """One reply a request, in order, but for what `Faults` says. Raises StageError (69) where it is to die."""
        faults = self._faults
        time.sleep(faults.seconds)
        if self._num_batches == faults.dies_at:
            raise StageError("stub engine: gone, as it was told to", UNAVAILABLE)
        self._num_batches += 1
        replies = []
        for request in batch:
            count = (request.key not in faults.dropped) + (request.key in faults.doubled)
            replies += [self._reply(request, sampling)] * count
        return replies

    def submit(self, request: Request, sampling: Sampling) -> None:
        """Take a request."""
        fault = self._fault(request, sampling)
        if fault:
            self._done.append(Reply(key=request.key, error=fault))
        else:
            self._lives[request.key] = Live(request, sampling, decode)

    def step(self) -> list[Event]:
        """A token for each request."""
        time.sleep(self._faults.seconds)
        events, self._done = self._done, []
        for live in list(self._lives.values()):
            token = self._choose(live.request, live.answer, live.sampling)
            reply = live.take(token)
            events.append(Delta(key=live.request.key, token=token))
            if reply is not None:
                del self._lives[live.request.key]
                events.append(reply)
        return events

    def abort(self, keys: Collection[str]) -> None:
        """End requests."""
        self._done += [self._lives.pop(key).reply("abort") for key in keys if key in self._lives]

    def constraint_fault(self, constraint: Constraint) -> str:
        """It is held to nothing."""
        return "the stub knows no grammars"

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._lives and not self._done

    def _fault(self, request: Request, sampling: Sampling) -> str:
        most, length = self.about.max_tokens or 0, len(request.prompt_ids)
        if request.key in self._faults.refused:
            return "refused, as it was told to"
        if not length or length + sampling.max_new_tokens > most:
            return f"prompt of {length} tokens leaves no room for {sampling.max_new_tokens} of {most}"
        if sampling.is_adjusted or sampling.min_new_tokens or request.adapter is not None:
            return "the stub knows no penalties, no least length and no adapters"
        return "" if sampling.constraint is None else self.constraint_fault(sampling.constraint)

    def _reply(self, request: Request, sampling: Sampling) -> Reply:
        fault = self._fault(request, sampling)
        if fault:
            return Reply(key=request.key, error=fault)
        reply = self._generate(request, sampling)
        if request.key in self._faults.not_a_number:
            return msgspec.structs.replace(reply, logp=[math.nan, *reply.logp[1:]])
        return reply

    def _generate(self, request: Request, sampling: Sampling) -> Reply:
        faults = self._faults
        live = Live(
            request,
            msgspec.structs.replace(
                sampling,
                max_new_tokens=sampling.max_new_tokens + faults.too_long,
                stop_ids=frozenset() if faults.ignores_stop_ids else sampling.stop_ids,
            ),
            decode,
        )
        while True:
            reply = live.take(self._choose(request, live.answer, sampling))
            if reply is not None:
                return reply

    def _choose(self, request: Request, ids: list[int], sampling: Sampling) -> Token:
        """The next token."""
        logits = self.logits(request.prompt_ids + ids)
        logp, raw = log_softmax(logits, sampling.temperature or 1.0), log_softmax(logits, 1.0)
        likeliest = sorted(range(VOCAB), key=lambda word: (-raw[word], word))
        top = [(word, raw[word]) for word in likeliest[: sampling.top_logprobs]]
        if sampling.temperature == 0:
            token = max(range(VOCAB), key=lambda word: (logits[word], -word))
            return Token(id=token, logp=logp[token], sampled_logp=0.0, raw_logp=raw[token], top=top)
        drawn_from = raw if self._faults.wrong_temperature else logp
        kept = keep(drawn_from, sampling)
        number = uniform(request.seed, len(ids))
        if self._faults.one_generator:
            self._num_drawn += 1
            number = uniform(0, self._num_drawn)
        total = math.fsum(math.exp(drawn_from[word]) for word in kept)
        left, token = number * total, kept[-1]
        for word in kept:
            left -= math.exp(drawn_from[word])
            if left < 0:
                token = word
                break
        sampled = logp[token] - math.log(math.fsum(math.exp(logp[word]) for word in kept))
        told = sampled if self._faults.renormalised else logp[token]
        return Token(id=token, logp=told, sampled_logp=sampled, raw_logp=raw[token], top=top)


def decode(ids: list[int]) -> str:
    """A letter for each token."""
    return "".join(chr(ord("a") + token) for token in ids)


def log_softmax(logits: list[float], temperature: float) -> list[float]:
    """Log-probabilities at a temperature above 0."""
    scaled = [logit / temperature for logit in logits]
    top = max(scaled)
    total = top + math.log(math.fsum(math.exp(value - top) for value in scaled))
    return [value - total for value in scaled]


def keep(logp: list[float], sampling: Sampling) -> list[int]:
    """The tokens that may be chosen, likeliest first and of equal ones the lower id."""
    order = sorted(range(len(logp)), key=lambda word: (-logp[word], word))[: sampling.top_k or None]
    total = math.fsum(math.exp(logp[word]) for word in order)
    kept: list[int] = []
    before = 0.0
    for word in order:
        share = math.exp(logp[word])
        if kept and (before >= sampling.top_p * total or share < sampling.min_p * math.exp(logp[order[0]])):
            break
        kept.append(word)
        before += share
    return kept


def _is_engine(engine: StubEngine) -> StepEngine:
    return engine  # mypy holds the stub to the protocol here
