"""POST /v1/embeddings, /v1/rerank, /v1/score, /v1/classify: of models that say something of a whole text."""

import base64
import math
import secrets
import time
from typing import Any

import numpy as np

from postmill.stages.serve.errors import invalid, unsupported
from postmill.stages.serve.fields import Classify, Embed, Rerank, Rescore
from postmill.stages.serve.service import Service

_MOST = 2048


async def embeddings(service: Service, body: Embed) -> dict[str, Any]:
    """Normalised vectors, in OpenAI's shape. Raises ApiError (400)."""
    rows = await _inputs(service, body.model, body.input)
    _need(service, "pool", "makes no embeddings; serve one with --head pool")
    vectors = [np.array(vector, np.float32) for vector in await service.values(rows)]
    if body.dimensions is not None:
        if body.dimensions > len(vectors[0]):
            raise invalid("dimensions", f"dimensions {body.dimensions} is more than the model's, {len(vectors[0])}.")
        vectors = [vector[: body.dimensions] / np.linalg.norm(vector[: body.dimensions]) for vector in vectors]
    is_float = body.encoding_format == "float"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector.tolist() if is_float else base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        }
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "model": body.model, "data": data, "usage": _usage(rows)}


async def rerank(service: Service, body: Rerank) -> dict[str, Any]:
    """Documents by falling relevance to the query, in Jina's shape. Raises ApiError (400)."""
    texts = [item if isinstance(item, str) else item.text for item in body.documents]
    scores, read = await _relevance(service, body.model, [(body.query, text) for text in texts], body.use_activation)
    order = sorted(range(len(texts)), key=lambda index: (-scores[index], index))[: body.top_n or len(texts)]
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": texts[index]}} if body.return_documents else {})
        for index in order
    ]
    return {
        "id": f"rerank-{secrets.token_hex(12)}",
        "model": body.model,
        "usage": {"prompt_tokens": read, "total_tokens": read},
        "results": results,
    }


async def score(service: Service, body: Rescore) -> dict[str, Any]:
    """One text with each of several, or texts in pairs, in vLLM's shape. Raises ApiError (400)."""
    first, second = ([text] if isinstance(text, str) else text for text in (body.text_1, body.text_2))
    if len(first) == 1:
        first *= len(second)
    if len(first) != len(second):
        raise invalid("text_2", f"text_1 has {len(first)} texts and text_2 {len(second)}; expected one, or as many.")
    scores, read = await _relevance(service, body.model, list(zip(first, second, strict=True)), body.use_activation)
    return {
        "id": f"score-{secrets.token_hex(12)}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model,
        "data": [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)],
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


async def classify(service: Service, body: Classify) -> dict[str, Any]:
    """Shares of the classes, or the classifier's own numbers, in vLLM's shape. Raises ApiError (400)."""
    rows = await _inputs(service, body.model, body.input)
    _need(service, "sequence", "has no classifier")
    data = []
    for index, values in enumerate(await service.values(rows)):
        shares = _activated(values) if body.use_activation else values
        likeliest = max(range(len(shares)), key=lambda at: (shares[at], -at))
        data.append({"index": index, "label": f"LABEL_{likeliest}", "probs": shares, "num_classes": len(shares)})
    return {
        "id": f"classify-{secrets.token_hex(12)}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model,
        "data": data,
        "usage": _usage(rows),
    }


def _activated(values: list[float]) -> list[float]:
    """A sigmoid of one number, a softmax of several."""
    if len(values) == 1:
        return [1 / (1 + math.exp(-values[0])) if values[0] >= 0 else math.exp(values[0]) / (1 + math.exp(values[0]))]
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def _need(service: Service, kind: str, why: str) -> None:
    if service.head != kind:
        raise unsupported("model", f"This model {why}.")


async def _inputs(service: Service, model: str, given: Any) -> list[list[int]]:
    """Each text's tokens, with those that the tokenizer puts around one. Raises ApiError (400, 404)."""
    service.model(model)
    service.check_makes("values")
    items = [given] if isinstance(given, str) or (given and type(given[0]) is int) else given
    if not items or len(items) > _MOST:
        raise invalid("input", f"input: {len(items)} texts, expected 1 to {_MOST}.")
    rows = []
    for number, item in enumerate(items):
        if isinstance(item, str):
            rows.append(await service.encode(item, special=True))
        elif isinstance(item, list) and all(type(token) is int and 0 <= token < service.vocab for token in item):
            rows.append(item)
        else:
            raise invalid(f"input.{number}", "input: expected text, or tokens of the vocabulary.")
    return rows


async def _relevance(
    service: Service, model: str, pairs: list[tuple[str, str]], use_activation: bool
) -> tuple[list[float], int]:
    """How well the texts of each pair fit, and the tokens that were read. A classifier of one number reads both
    together; an embedding model's vectors are compared by their cosine."""
    service.model(model)
    service.check_makes("values")
    if not 1 <= len(pairs) <= _MOST:
        raise invalid("documents", f"{len(pairs)} texts, expected 1 to {_MOST}.")
    if service.head == "pool":
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        rows = [await service.encode(text, special=True) for text in texts]
        vectors = dict(zip(texts, map(np.array, await service.values(rows)), strict=True))
        return [float(vectors[a] @ vectors[b]) for a, b in pairs], sum(map(len, rows))
    rows = await service.in_thread(lambda: [service.speaker.pair_ids(a, b) for a, b in pairs])
    values = await service.values(rows)
    if len(values[0]) != 1:
        raise unsupported("model", f"This model gives {len(values[0])} numbers, a reranker one; see /v1/classify.")
    return [(_activated(each) if use_activation else each)[0] for each in values], sum(map(len, rows))


def _usage(rows: list[list[int]]) -> dict[str, int]:
    read = sum(map(len, rows))
    return {"prompt_tokens": read, "total_tokens": read}
