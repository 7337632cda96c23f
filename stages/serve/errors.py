"""Errors as the clients of OpenAI and Anthropic read them, and the table of which is which."""

from typing import Any

_TYPES = {401: "invalid_request_error", 408: "server_error", 429: "requests", 500: "server_error", 503: "server_error"}
_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "api_error",
}


class ApiError(Exception):
    """What a request is answered with instead: a status, a `code` that programs read, and a message for people.

    `param` is the path of the field that is to blame. Whether a client should try again follows from the status: it
    does by itself at 429 and 5xx, so what would fail again the same way is never one of them, or says so in a header.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = headers or {}

    def body(self, *, is_anthropic: bool, request_id: str) -> dict[str, Any]:
        """The answer's JSON."""
        if is_anthropic:
            error = {"type": _ANTHROPIC.get(self.status, "api_error"), "message": self.message}
            return {"type": "error", "error": error, "request_id": request_id}
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str, message: str) -> ApiError:
    """A value that cannot be."""
    return ApiError(400, "invalid_value", message, param)


def unsupported(param: str, message: str) -> ApiError:
    """A thing that this server does not do."""
    return ApiError(400, "unsupported_parameter", message, param)


def overloaded(wait_s: int) -> ApiError:
    """The queue is full."""
    message = "Too many requests are waiting; try again later."
    return ApiError(429, "engine_overloaded", message, headers={"retry-after": str(max(1, min(wait_s, 60)))})


def draining() -> ApiError:
    """The server is about to end."""
    headers = {"retry-after": "5", "connection": "close"}
    return ApiError(503, "draining", "The server is shutting down.", headers=headers)


def engine_down() -> ApiError:
    """The engine has failed."""
    return ApiError(
        503, "engine_down", "The engine has failed and the server is ending.", headers={"retry-after": "10"}
    )


def too_long(prompt_tokens: int, new_tokens: int, most: int, param: str) -> ApiError:
    """Prompt and answer do not fit, in OpenAI's words."""
    message = (
        f"This model's maximum context length is {most} tokens. However, your messages resulted in {prompt_tokens}"
        f" tokens and {new_tokens} were requested for the completion. Please reduce the length of the messages or"
        " completion."
    )
    return ApiError(400, "context_length_exceeded", message, param)
