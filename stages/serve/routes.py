"""Which route is what: from a request's body to the answer's JSON, or to a stream of events."""

from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any, Protocol

import msgspec

from postmill.stages.serve import anthropic, chat, completions, responses, vectors
from postmill.stages.serve.adapters import Named
from postmill.stages.serve.conversation import read_messages, read_tools
from postmill.stages.serve.errors import ApiError, invalid
from postmill.stages.serve.fields import (
    Chat,
    Classify,
    Completion,
    Detokenize,
    Embed,
    LoadAdapter,
    Messages,
    Rerank,
    Rescore,
    Respond,
    Tokenize,
    UnloadAdapter,
    parse,
)
from postmill.stages.serve.openapi import document
from postmill.stages.serve.service import Service


class Call(Protocol):
    """A request, as handlers see it."""

    name: str
    """The name in its path."""

    async def body(self) -> bytes:
        """Raises ApiError (413, 415)."""
        ...


Handler = Callable[[Service, Call], Awaitable[Any]]


class Stream:
    """Events of an answer: `events` as they come, written by `write`, closed by `end`."""

    def __init__(
        self,
        events: AsyncIterator[dict[str, Any]],
        write: Callable[[dict[str, Any]], bytes],
        end: bytes,
        promised: str,
    ) -> None:
        """promised: the id of the room that is kept for it."""
        self.events, self.write, self.end, self.promised = events, write, end, promised


def openai_event(data: dict[str, Any]) -> bytes:
    """An event as OpenAI's streams have them."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


async def _health(service: Service, call: Call) -> Any:
    if service.worker.died.is_set():
        raise ApiError(503, "engine_down", "The engine has failed.")
    return {"status": "ok"}


async def _ready(service: Service, call: Call) -> Any:
    service.check_open()
    return {"status": "ok", "running": service.worker.num_running}


async def _metrics(service: Service, call: Call) -> Any:
    return service.metrics.text(running=service.worker.num_running)


def _card(service: Service, model: Named) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": service.started,
        "owned_by": "postmill",
        "root": model.name if model.parent is None else model.parent,
        "parent": model.parent,
        "max_model_len": service.most_tokens,
        "digest": model.digest,
        "sampling": msgspec.to_builtins(service.defaults),
    }


async def _openapi(service: Service, call: Call) -> Any:
    is_there = {path: methods for path, methods in ROUTES.items() if path not in ADMIN or service.cfg.admin_key_file}
    return document(is_there, version=version("postmill"), has_keys=bool(service.cfg.key_file))


async def _models(service: Service, call: Call) -> Any:
    return {"object": "list", "data": [_card(service, model) for model in service.models.values()]}


async def _one_model(service: Service, call: Call) -> Any:
    return _card(service, service.model(call.name))


async def _chat(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Chat)
    service.check_makes("text")
    service.check_open()
    ask = await chat.prepare(service, body)
    if body.stream:
        return Stream(chat.stream(service, body, ask), openai_event, b"data: [DONE]\n\n", service.promise(ask))
    return await chat.answer(service, body, ask)


async def _completions(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Completion)
    service.check_makes("text")
    service.check_open()
    asks = await completions.prepare(service, body)
    if body.stream:
        events = completions.stream(service, body, asks)
        return Stream(events, openai_event, b"data: [DONE]\n\n", service.promise(asks[0]))
    return await completions.answer(service, body, asks)


async def _responses(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Respond)
    service.check_makes("text")
    service.check_open()
    ask = await responses.prepare(service, body)
    if body.stream:
        return Stream(responses.stream(service, body, ask), responses.event, b"", service.promise(ask))
    return await responses.answer(service, body, ask)


async def _messages(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Messages)
    service.check_makes("text")
    service.check_open()
    ask = await anthropic.prepare(service, body)
    if body.stream:
        return Stream(anthropic.stream(service, body, ask), anthropic.event, b"", service.promise(ask))
    return await anthropic.answer(service, body, ask)


async def _count_tokens(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Messages)
    service.model(body.model)
    return {"input_tokens": len((await anthropic.prompt(service, body)).ids)}


async def _tokenize(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Tokenize)
    if body.model is not None:
        service.model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt", "Give prompt or messages, one of them.")
    if body.messages is not None:
        prompt = await service.read(
            read_messages(body.messages, pictures=service.reads_pictures),
            tools=read_tools(body.tools),
            **({"add_generation_prompt": body.add_generation_prompt} | (body.chat_template_kwargs or {})),
        )
        ids = prompt.ids
    else:
        ids = await service.encode(body.prompt or "", special=body.add_special_tokens)
    names = [service.speaker.piece(token) for token in ids] if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": service.most_tokens, "tokens": ids, "token_strs": names}


async def _tokenizer_info(service: Service, call: Call) -> Any:
    return service.speaker.about


async def _detokenize(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Detokenize)
    wrong = [token for token in body.tokens if token >= service.vocab]
    if wrong:
        raise invalid("tokens", f"tokens: {wrong[0]} is outside the vocabulary of {service.vocab}.")
    return {"prompt": service.speaker.decode(body.tokens, special=True)}


async def _embeddings(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Embed)
    return await vectors.embeddings(service, body)


async def _rerank(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Rerank)
    return await vectors.rerank(service, body)


async def _score(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Rescore)
    return await vectors.score(service, body)


async def _classify(service: Service, call: Call) -> Any:
    body = parse(await call.body(), Classify)
    return await vectors.classify(service, body)


async def _load_adapter(service: Service, call: Call) -> Any:
    body = parse(await call.body(), LoadAdapter)
    service.check_open(0)
    return _card(service, await service.adapters.load(body.lora_name, body.lora_path, replace=body.load_inplace))


async def _unload_adapter(service: Service, call: Call) -> Any:
    body = parse(await call.body(), UnloadAdapter)
    service.adapters.unload(body.lora_name)
    return {"id": body.lora_name, "deleted": True}


ROUTES: dict[str, dict[str, Handler]] = {
    "/health": {"GET": _health},
    "/healthz": {"GET": _health},
    "/readyz": {"GET": _ready},
    "/metrics": {"GET": _metrics},
    "/openapi.json": {"GET": _openapi},
    "/v1/models": {"GET": _models},
    "/v1/models/{name}": {"GET": _one_model},
    "/v1/chat/completions": {"POST": _chat},
    "/v1/completions": {"POST": _completions},
    "/v1/embeddings": {"POST": _embeddings},
    "/v1/rerank": {"POST": _rerank},
    "/v1/score": {"POST": _score},
    "/v1/classify": {"POST": _classify},
    "/v1/responses": {"POST": _responses},
    "/v1/messages": {"POST": _messages},
    "/v1/messages/count_tokens": {"POST": _count_tokens},
    "/v1/load_lora_adapter": {"POST": _load_adapter},
    "/v1/unload_lora_adapter": {"POST": _unload_adapter},
    "/tokenize": {"POST": _tokenize},
    "/detokenize": {"POST": _detokenize},
    "/tokenizer_info": {"GET": _tokenizer_info},
}
"""All there is. Anything else is not found, once the key is right."""
ADMIN = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""Routes that ask for an admin's key; without such keys they do not exist."""
