"""The server's own description, in OpenAPI 3.1, made from the structs that bodies are read into.

Source: <https://spec.openapis.org/oas/v3.1.0>.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from postmill.stages.serve import fields

BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": fields.Chat,
    "/v1/completions": fields.Completion,
    "/v1/embeddings": fields.Embed,
    "/v1/rerank": fields.Rerank,
    "/v1/score": fields.Rescore,
    "/v1/classify": fields.Classify,
    "/v1/responses": fields.Respond,
    "/v1/messages": fields.Messages,
    "/v1/messages/count_tokens": fields.Messages,
    "/v1/load_lora_adapter": fields.LoadAdapter,
    "/v1/unload_lora_adapter": fields.UnloadAdapter,
    "/tokenize": fields.Tokenize,
    "/detokenize": fields.Detokenize,
}
"""What each route that takes a body reads it into."""
_STREAMED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
_OPEN = frozenset({"/health", "/healthz"})
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message", "type"]}},
}


def document(routes: Mapping[str, Collection[str]], *, version: str, has_keys: bool) -> dict[str, Any]:
    """The description. routes: the methods of each path; has_keys: whether a key is asked for."""
    _, schemas = msgspec.json.schema_components(
        sorted(set(BODIES.values()), key=lambda kind: kind.__name__), ref_template="#/components/schemas/{name}"
    )
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Postmill", "version": version},
        "paths": {path: {method.lower(): _operation(path) for method in methods} for path, methods in routes.items()},
        "components": {"schemas": {**schemas, "Error": _ERROR}},
    }
    if has_keys:
        description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in description["paths"].items():
        if has_keys and path not in _OPEN:
            for operation in operations.values():
                operation["security"] = [{"key": []}]
    return description


def _operation(path: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"text/plain": {}} if path == "/metrics" else {"application/json": {}}
    if path in _STREAMED:
        answer["text/event-stream"] = {}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "operationId": path.strip("/").replace("/", "_").replace("{", "").replace("}", "") or "root",
        "responses": {
            "200": {"description": "The answer.", "content": answer},
            "default": {"description": "Why there is none.", "content": error},
        },
    }
    if path in BODIES:
        schema = {"$ref": f"#/components/schemas/{BODIES[path].__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if "{name}" in path:
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation
