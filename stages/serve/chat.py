"""POST /v1/chat/completions."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from postmill.stages.serve.constraints import read_constraint
from postmill.stages.serve.conversation import read_messages, read_tools
from postmill.stages.serve.errors import invalid, unsupported
from postmill.stages.serve.fields import Chat
from postmill.stages.serve.sampling import num_answers, read_sampling
from postmill.stages.serve.service import Answer, Ask, Piece, Service
from postmill.stages.serve.tool_choice import read_tool_choice, tool_constraint
from postmill.stages.shared.agent_formats.parser import Part
from postmill.stages.shared.engine.protocol import Reply, Token


async def prepare(service: Service, body: Chat) -> Ask:
    """The request in the engine's terms. Raises ApiError (400, 404, 429, 503)."""
    model = service.model(body.model)
    _refuse(body)
    messages = read_messages(body.messages, pictures=service.reads_pictures)
    tools = read_tools(body.tools)
    count = num_answers(service, body)
    options = template_options(body)
    ids, inputs = await service.read(messages, tools=tools, **options)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if asked == 0:
        raise invalid("max_tokens", "max_tokens: expected at least 1.")
    sampling = read_sampling(service, body, ids, asked, "messages")
    is_reasoning = service.is_reasoning(ids)
    wanted = read_tool_choice(body.tool_choice, tools)
    calls = None if body.tool_choice == "none" else tool_constraint(service, wanted, tools)
    constraint = await read_constraint(service, body, is_reasoning=is_reasoning, calls=calls)
    return Ask(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        model=model,
        prompt_ids=ids,
        inputs=inputs,
        sampling=msgspec.structs.replace(sampling, top_logprobs=body.top_logprobs or 0, constraint=constraint),
        seeds=service.seeds(body.seed, count),
        tools=tools,
        agent_format=service.agent_format if tools and body.tool_choice != "none" else "",
        reasons=service.reasons,
        is_reasoning=is_reasoning,
    )


def _refuse(body: Chat) -> None:
    """Raises ApiError (400) for what is asked and not done."""
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs: true.")
    if body.store:
        raise unsupported("store", "store: nothing is kept here.")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options needs stream: true.")
    if body.continue_final_message and body.add_generation_prompt:
        raise invalid("continue_final_message", "continue_final_message and add_generation_prompt exclude each other.")


def template_options(body: Chat) -> dict[str, Any]:
    """What the template is given beside messages and tools."""
    options: dict[str, Any] = dict(body.chat_template_kwargs or {})
    for name in ("messages", "tools", "chat_template", "tokenize", "return_dict", "return_tensors"):
        if name in options:
            raise invalid("chat_template_kwargs", f"chat_template_kwargs: {name!r} is not a template's own.")
    if body.reasoning_effort is not None:
        options.setdefault("reasoning_effort", body.reasoning_effort)
    if body.continue_final_message:
        return options | {"add_generation_prompt": False, "continue_final_message": True}
    return options | (
        {} if body.add_generation_prompt is None else {"add_generation_prompt": body.add_generation_prompt}
    )


def usage(ask: Ask, replies: list[Reply]) -> dict[str, Any]:
    """Tokens read and made."""
    made = sum(len(reply.ids) for reply in replies)
    return {
        "prompt_tokens": len(ask.prompt_ids),
        "completion_tokens": made,
        "total_tokens": len(ask.prompt_ids) + made,
        "prompt_tokens_details": {"cached_tokens": max((reply.cached_tokens for reply in replies), default=0)},
    }


def _logprob(service: Service, token_id: int, value: float | None) -> dict[str, Any]:
    return {
        "token": service.speaker.piece(token_id),
        "logprob": value,
        "bytes": service.speaker.token_bytes(token_id),
    }


def logprobs(service: Service, tokens: list[Token]) -> dict[str, Any]:
    """OpenAI's log-probs of some tokens."""
    content = [
        _logprob(service, token.id, token.raw_logp)
        | {"top_logprobs": [_logprob(service, other, value) for other, value in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


async def answer(service: Service, body: Chat, ask: Ask) -> dict[str, Any]:
    """The whole answer."""
    answers = await service.whole(ask)
    return {
        "id": ask.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": service.fingerprint,
        "choices": [_choice(service, body, ask, index, each) for index, each in enumerate(answers)],
        "usage": usage(ask, [each.reply for each in answers if each.reply is not None]),
    }


def _choice(service: Service, body: Chat, ask: Ask, index: int, answer: Answer) -> dict[str, Any]:
    assert answer.reply is not None
    parser = ask.parser()
    parts = [*parser.push(answer.text), *parser.finish()]
    content = "".join(part.content for part in parts)
    thought = "".join(part.reasoning for part in parts)
    calls = [part.call for part in parts if part.call is not None]
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if thought:
        # both names: clients know one or the other
        message |= {"reasoning_content": thought, "reasoning": thought}
    if calls:
        message["tool_calls"] = [ask.call(index, number, call) for number, call in enumerate(calls)]
    if not content and (calls or thought):
        message["content"] = None
    choice: dict[str, Any] = {
        "index": index,
        "message": message,
        "logprobs": logprobs(service, answer.tokens) if body.logprobs else None,
        "finish_reason": "tool_calls" if calls else answer.reply.finish,
    }
    return choice | (exact(answer.reply) if body.return_token_ids else {})


def exact(reply: Reply) -> dict[str, Any]:
    """What learning from an answer needs: its ids, and the three log-probs of each."""
    return {
        "token_ids": reply.ids,
        "token_logps": reply.logp,
        "token_sampled_logps": reply.sampled_logp,
        "token_raw_logps": reply.raw_logp,
    }


async def stream(service: Service, body: Chat, ask: Ask) -> AsyncIterator[dict[str, Any]]:
    """The answer in chunks."""
    head = {
        "id": ask.id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": service.fingerprint,
    }
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    tail: dict[str, Any] = {"usage": None} if wants_usage else {}

    def chunk(index: int, delta: dict[str, Any], finish: str | None, tokens: list[Token]) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs(service, tokens) if body.logprobs and tokens else None,
            "finish_reason": finish,
        }
        return head | {"choices": [choice]} | tail

    for index in range(len(ask.seeds)):
        yield chunk(index, {"role": "assistant", "content": ""}, None, [])
    replies: list[Reply] = []
    held: list[list[Token]] = [[] for _ in ask.seeds]
    parsers = [ask.parser() for _ in ask.seeds]
    num_calls = [0] * len(ask.seeds)
    async for piece in service.answers(ask):
        index = piece.index
        _hold(held, piece)
        parts = parsers[index].push(piece.text)
        if piece.reply is not None:
            parts += parsers[index].finish()
        for part in parts:
            delta = _delta(ask, index, num_calls[index], part)
            num_calls[index] += part.call is not None
            yield chunk(index, delta, None, held[index])
            held[index] = []
        if piece.reply is not None:
            replies.append(piece.reply)
            yield chunk(index, {}, "tool_calls" if num_calls[index] else piece.reply.finish, held[index])
    if wants_usage:
        yield head | {"choices": [], "usage": usage(ask, replies)}


def _delta(ask: Ask, index: int, number: int, part: Part) -> dict[str, Any]:
    if part.call is not None:
        return {"tool_calls": [{"index": number} | ask.call(index, number, part.call)]}
    if part.reasoning:
        return {"reasoning_content": part.reasoning, "reasoning": part.reasoning}
    return {"content": part.content}


def _hold(held: list[list[Token]], piece: Piece) -> None:
    """Tokens whose text still waits are told of with the next text."""
    if piece.token is not None:
        held[piece.index].append(piece.token)
