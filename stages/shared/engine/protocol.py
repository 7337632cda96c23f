"""What an engine is: token ids in; token ids, log-probabilities and a finish reason out. No text enters or leaves it.

Requests are answered in batches that are a pure function of the requests, so that a run that was stopped makes the same
batches again and, with the same engine, the same answers. An engine that cannot do a thing says so in `About.can`, and
its caller refuses; nothing is imitated.
"""

from pathlib import Path
from typing import Literal, Protocol

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token, of equal ones the lowest id."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """A token stays while those before it hold less than this share of probability; the likeliest always stays."""
    min_p: float = 0.0
    """A token stays if it has at least this share of the likeliest token's probability."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end an answer; the one that does is its last id."""

    @property
    def is_truncated(self) -> bool:
        """Whether some tokens can never be chosen: then `sampled` log-probs are of a narrower distribution."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to go on with. Requests with equal `prompt_ids` share the work of reading it."""

    key: str
    prompt_ids: list[int]
    seed: int
    """The request's own: with it, token t is the same whatever else is answered beside it, up to rounding."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for a request: ids, or the `error` why nothing could be asked."""

    key: str
    ids: list[int] = []
    """Sampled tokens, the one that ended the answer included."""
    logp: list[float] = []
    """Log-probability of each under the model at the sampling temperature, before truncation: what a ratio needs.
    With temperature 0 it is that at temperature 1."""
    sampled_logp: list[float] = []
    """Log-probability of each under what it was drawn from, after truncation; 0 for a choice without alternative."""
    finish: Literal["stop", "length", "error"] = "error"
    error: str | None = None


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine holds after loading weights."""

    digest: str
    """Of the tensors in memory, computed after they were loaded; see `proof`."""
    proof: Literal["memory", "claimed"]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is and can do."""

    kind: str
    versions: dict[str, str]
    can: frozenset[str]
    """Of: logp, seed, adapters, load, shared_prefix, repeatable."""
    max_tokens: int | None
    """Longest prompt and answer together."""
    stop_ids: frozenset[int]
    """Tokens that end an answer by the model's own configuration and training."""


class Engine(Protocol):
    """A model, ready. A failure of one request is a Reply with an error; a failure of the engine is raised."""

    about: About
    loaded: Loaded

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """The requests in the groups they are to be answered in; a pure function of them."""
        ...

    def answer(self, batch: list[Request], sampling: Sampling) -> list[Reply]:
        """One reply a request, in order."""
        ...

    def load(self, folders: list[Path]) -> Loaded:
        """Take other weights: a model's folder, or a base and an adapter."""
        ...
