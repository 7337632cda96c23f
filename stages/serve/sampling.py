"""From the fields of a request to the engine's settings."""

from typing import Any

from postmill.stages.serve.errors import invalid
from postmill.stages.serve.fields import Common
from postmill.stages.serve.service import Service
from postmill.stages.shared.engine.protocol import Sampling


def read_sampling(service: Service, body: Common, prompt_ids: list[int], asked: int | None, param: str) -> Sampling:
    """What a request asks for; the model's own settings where it does not say. Raises ApiError (400)."""
    own, stop_ids = service.defaults, service.about.stop_ids or service.speaker.eos_ids
    if body.ignore_eos:
        stop_ids = frozenset()
    vocab = service.vocab
    for name, ids in (("stop_token_ids", body.stop_token_ids or []), ("logit_bias", list(read_bias(body)))):
        wrong = [token for token in ids if token >= vocab]
        if wrong:
            raise invalid(name, f"{name}: token {wrong[0]} is outside the vocabulary of {vocab}.")
    if any(not text for text in body.stops):
        raise invalid("stop", "stop: an empty text ends nothing.")
    most = service.budget(prompt_ids, asked, param)
    least = body.min_tokens or 0
    if least > most:
        raise invalid("min_tokens", f"min_tokens {least} is more than the longest answer, {most}.")

    def said(value: Any, default: Any) -> Any:
        return default if value is None else value

    return Sampling(
        max_new_tokens=most,
        min_new_tokens=least,
        temperature=said(body.temperature, own.temperature),
        top_p=said(body.top_p, own.top_p),
        top_k=max(said(body.top_k, own.top_k), 0),
        min_p=said(body.min_p, own.min_p),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=said(body.repetition_penalty, own.repetition_penalty),
        bias=read_bias(body),
        stop_ids=stop_ids | frozenset(body.stop_token_ids or []),
        stop=body.stops,
    )


def read_bias(body: Common) -> dict[int, float]:
    """Logit bias by token. Raises ApiError (400) for a key that is no token."""
    bias = {}
    for key, value in (body.logit_bias or {}).items():
        if not key.isascii() or not key.isdecimal() or len(key) > 10:
            raise invalid("logit_bias", f"logit_bias: {key[:20]!r} is no token id.")
        bias[int(key)] = value
    return bias


def num_answers(service: Service, body: Common) -> int:
    """How many answers a request wants. Raises ApiError (400)."""
    count = body.n or 1
    if count > service.cfg.max_n:
        raise invalid("n", f"n {count} is more than this server gives, {service.cfg.max_n}.")
    return count
