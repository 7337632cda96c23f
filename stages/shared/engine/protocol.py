"""What an engine is: token ids in; token ids, log-probabilities and a finish reason out. No text enters or leaves it.

Requests are answered in batches that are a pure function of the requests, so that a run that was stopped makes the same
batches again and, with the same engine, the same answers. A `StepEngine` also takes requests one at a time: they join
and leave between steps. An engine that cannot do a thing says so in `About.can`, and its caller refuses; nothing is
imitated.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer has to be, all of it: a text that a grammar describes."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    source: str
    """A schema as JSON; a regular expression without look-around; a list of texts as JSON; a grammar in the notation of
    Lark or of GBNF."""
    after: int | None = None
    """The grammar begins after this token, as the one that closes reasoning."""


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
    presence_penalty: float = 0.0
    """Taken from the logit of each token that the answer already has."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time that the answer already has it."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that the prompt or the answer has."""
    bias: dict[int, float] = {}
    """Added to the logits of these tokens."""
    min_new_tokens: int = 0
    """Nothing ends the answer before it has this many tokens."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end an answer; the one that does is its last id."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; the token that completes one is its last id. They are not looked for in the prompt."""
    top_logprobs: int = 0
    """Report this many likeliest tokens at each place, by `raw_logp`."""
    constraint: Constraint | None = None
    """Only tokens that lead to a text of this kind can be chosen, and the answer ends only where such a text may."""

    @property
    def is_adjusted(self) -> bool:
        """Whether logits are changed before anything is drawn."""
        return bool(self.presence_penalty or self.frequency_penalty or self.bias) or self.repetition_penalty != 1

    @property
    def is_truncated(self) -> bool:
        """Whether some tokens can never be chosen: then `sampled` log-probs are of a narrower distribution."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.constraint is not None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to go on with. Requests with equal `prompt_ids` share the work of reading it."""

    key: str
    prompt_ids: list[int]
    seed: int
    """The request's own: with it, token t is the same whatever else is answered beside it. To the bit where the engine
    can `batch_invariant`, else up to rounding."""
    adapter: str | None = None
    """Name of an adapter that was added; None is the weights that were loaded."""
    messages: list[dict[str, Any]] | None = None
    """The conversation, for an engine that is reached by `text`, whose server writes the prompt; it has no ids then."""
    text: str | None = None
    """The prompt as text, for an engine that is reached by `text`, whose server makes tokens of it; without ids."""
    inputs: Callable[[], dict[str, Any]] | None = None
    """Makes what the model reads of the prompt's pictures, tensors by name, when it is their turn. Requests that share
    one prompt and one of these are answered together, others with pictures alone."""
    prompt_logprobs: int | None = None
    """Report log-probs of the prompt's tokens, and this many likeliest ones at each place."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token that was chosen or read, with its log-probs; see `Reply` for the three kinds."""

    id: int
    logp: float | None = None
    sampled_logp: float | None = None
    raw_logp: float | None = None
    top: list[tuple[int, float]] = []
    """The likeliest tokens at this place and their `raw_logp`, the likeliest first."""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A token more of the answer to a request."""

    key: str
    token: Token


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for a request: ids, or the `error` why nothing could be asked."""

    key: str
    ids: list[int] = []
    """Sampled tokens, the one that ended the answer included."""
    logp: list[float] = []
    """Log-probability of each under the model at the sampling temperature, before truncation: what a ratio needs.
    With temperature 0 it is that at temperature 1."""
    sampled_logp: list[float] = []
    """Log-probability of each under what it was drawn from, after penalties, bias and truncation; 0 for a choice
    without alternative."""
    raw_logp: list[float] = []
    """Log-probability of each under the model itself, at temperature 1."""
    finish: Literal["stop", "length", "abort", "error"] = "error"
    stop: str | None = None
    """The text of `Sampling.stop` that ended the answer."""
    prompt: list[Token] = []
    """The prompt's tokens, where `Request.prompt_logprobs` asks for them; the first one has no log-prob."""
    cached_tokens: int = 0
    """Tokens of the prompt that were read before, for another request."""
    values: list[float] = []
    """What a model that makes no text says of the prompt: a vector, or a classifier's numbers."""
    text: str | None = None
    """The answer of an engine that is reached by `text`; it has no ids then."""
    error: str | None = None


Event = Delta | Reply
"""What a step brings: tokens, and the reply that ends each request."""


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
    """Of: logp, raw_logp, prompt_logp, seed, adapters, load, shared_prefix, repeatable, steps, batch_invariant,
    text, constrain, values, pictures."""
    max_tokens: int | None
    """Longest prompt and answer together."""
    vocab_size: int = 0
    """Tokens that a prompt may have; 0 if that is not known."""
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


class StepEngine(Engine, Protocol):
    """An engine that takes requests one at a time. One thread calls it; nothing waits but `step`."""

    def submit(self, request: Request, sampling: Sampling) -> None:
        """Take a request. What cannot be answered gets a Reply with an error from the next step."""
        ...

    def step(self) -> list[Event]:
        """Read or choose some tokens for the requests there are. Each ends in exactly one Reply."""
        ...

    def abort(self, keys: Collection[str]) -> None:
        """End requests: each gets a Reply with what it has so far from the next step. Others are ignored."""
        ...

    def constraint_fault(self, constraint: Constraint) -> str:
        """Why no answer can be held to it; empty if one can. Any thread may ask: it takes time."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        ...
