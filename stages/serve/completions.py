"""POST /v1/completions: prompts as text or as ids, several in one request, with the prompt's own log-probs on
request."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from postmill.stages.serve.chat import exact, usage
from postmill.stages.serve.constraints import read_constraint
from postmill.stages.serve.errors import invalid, unsupported
from postmill.stages.serve.fields import Completion
from postmill.stages.serve.sampling import num_answers, read_sampling
from postmill.stages.serve.service import Answer, Ask, Service
from postmill.stages.shared.engine.protocol import Reply, Token

_SHORT = 16
"""OpenAI's default length of a completion."""


async def prepare(service: Service, body: Completion) -> list[Ask]:
    """A request for each prompt. Raises ApiError (400, 404)."""
    model = service.model(body.model)
    if body.suffix:
        raise unsupported("suffix", "suffix: this server does not fill gaps.")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of", "best_of: only as many answers are made as n asks for.")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options needs stream: true.")
    if body.stream and body.echo:
        raise unsupported("echo", "echo: not with stream.")
    prompts = await _prompts(service, body.prompt)
    count = num_answers(service, body)
    constraint = await read_constraint(service, body)
    asks = []
    for number, ids in enumerate(prompts):
        asked = _SHORT if body.max_tokens is None else body.max_tokens
        if asked == 0 and not body.echo:
            raise invalid("max_tokens", "max_tokens: 0 needs echo: true.")
        sampling = read_sampling(service, body, ids, asked, "prompt")
        wanted = body.logprobs
        asks.append(
            Ask(
                id=f"cmpl-{secrets.token_hex(12)}-{number}",
                model=model,
                prompt_ids=ids,
                sampling=msgspec.structs.replace(sampling, top_logprobs=wanted or 0, constraint=constraint),
                seeds=service.seeds(body.seed, count),
                prompt_logprobs=wanted if body.echo else None,
                param="prompt",
            )
        )
    return asks


async def _prompts(service: Service, prompt: str | list[Any]) -> list[list[int]]:
    """Each prompt's tokens. Raises ApiError (400)."""
    if isinstance(prompt, str):
        return [await service.encode(prompt, special=True)]
    if not prompt:
        raise invalid("prompt", "prompt: the list is empty.")
    if len(prompt) > 2048 and not isinstance(prompt[0], int):
        raise invalid("prompt", f"prompt: {len(prompt)} prompts in one request, expected at most 2048.")
    if all(isinstance(item, str) for item in prompt):
        return [await service.encode(item, special=True) for item in prompt]
    lists = [prompt] if all(type(item) is int for item in prompt) else prompt
    vocab = service.vocab
    for number, ids in enumerate(lists):
        if not isinstance(ids, list) or not all(type(item) is int for item in ids):
            raise invalid(f"prompt.{number}", "prompt: expected text, tokens, or a list of one of them.")
        wrong = [item for item in ids if not 0 <= item < vocab]
        if wrong:
            raise invalid("prompt", f"prompt: token {wrong[0]} is outside the vocabulary of {vocab}.")
    return lists


async def answer(service: Service, body: Completion, asks: list[Ask]) -> dict[str, Any]:
    """All answers to all prompts."""
    choices: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    service.check_open(sum(len(ask.seeds) for ask in asks))
    tasks = [asyncio.ensure_future(service.whole(ask)) for ask in asks]
    try:
        answered = await asyncio.gather(*tasks)
    finally:  # one that fails ends the others
        for task in tasks:
            task.cancel()
    for ask, answers in zip(asks, answered, strict=True):
        counts.append(usage(ask, [each.reply for each in answers if each.reply is not None]))
        # only the first of several answers scores the prompt, which is the same for all
        prompt = answers[0].reply.prompt if answers[0].reply is not None else []
        choices += [_choice(service, body, ask, each, len(choices) + n, prompt) for n, each in enumerate(answers)]
    return {
        "id": asks[0].id.rpartition("-")[0],
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": service.fingerprint,
        "choices": choices,
        "usage": {
            name: sum(count[name] for count in counts)
            for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        },
    }


def _choice(  # noqa: PLR0917  every one of them is needed
    service: Service, body: Completion, ask: Ask, answer: Answer, index: int, prompt: list[Token]
) -> dict[str, Any]:
    assert answer.reply is not None
    text, tokens = answer.text, answer.tokens
    if body.echo:
        text = service.speaker.decode(ask.prompt_ids) + text
        tokens = prompt + tokens
    choice: dict[str, Any] = {
        "index": index,
        "text": text,
        "logprobs": None if body.logprobs is None else legacy_logprobs(service, tokens),
        "finish_reason": answer.reply.finish,
    }
    return choice | (exact(answer.reply) if body.return_token_ids else {})


def legacy_logprobs(service: Service, tokens: list[Token], offset: int = 0) -> dict[str, Any]:
    """The columns of `/v1/completions`. The chosen token is among the likeliest with the very same number: harnesses
    find out by that whether it was the likeliest."""
    names: list[str] = []
    offsets: list[int] = []
    tops: list[dict[str, float] | None] = []
    for token in tokens:
        name = _name(service, token.id)
        names.append(name)
        offsets.append(offset)
        offset += len(name)
        if token.raw_logp is None:
            tops.append(None)
            continue
        top = {name: token.raw_logp}
        for other, value in token.top:
            label = _name(service, other)
            top.setdefault(label if label not in top or other == token.id else f"token_id:{other}", value)
        tops.append(top)
    return {
        "tokens": names,
        "token_logprobs": [token.raw_logp for token in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _name(service: Service, token: int) -> str:
    """A token as text; part of a character as its bytes."""
    piece = service.speaker.piece(token)
    if "\ufffd" not in piece:
        return piece
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in service.speaker.token_bytes(token))


async def stream(service: Service, body: Completion, asks: list[Ask]) -> AsyncIterator[dict[str, Any]]:
    """Answers in chunks, prompt after prompt."""
    head = {
        "id": asks[0].id.rpartition("-")[0],
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": service.fingerprint,
    }
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    tail: dict[str, Any] = {"usage": None} if wants_usage else {}
    read, replies = 0, list[Reply]()
    for number, ask in enumerate(asks):
        held: list[list[Token]] = [[] for _ in ask.seeds]
        read += len(ask.prompt_ids)
        async for piece in service.answers(ask):
            if piece.token is not None:
                held[piece.index].append(piece.token)
            if piece.reply is not None:
                replies.append(piece.reply)
            if not piece.text and piece.reply is None:
                continue
            tokens, held[piece.index] = held[piece.index], []
            choice = {
                "index": number * len(ask.seeds) + piece.index,
                "text": piece.text,
                "logprobs": legacy_logprobs(service, tokens) if body.logprobs is not None else None,
                "finish_reason": piece.reply.finish if piece.reply is not None else None,
            }
            yield head | {"choices": [choice]} | tail
    if wants_usage:
        made = sum(len(reply.ids) for reply in replies)
        counts = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        yield head | {"choices": [], "usage": counts}
