"""HTTP: who may ask, and how answers and errors are written.

Before anything else, the host that a request names and its key are looked at. So a route that does not exist asks for a
key too. A client that goes away, in a stream or not, ends the work that was done for it.
"""

import asyncio
import hmac
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from postmill.stages.serve import anthropic
from postmill.stages.serve.errors import ApiError
from postmill.stages.serve.routes import ADMIN, ROUTES, Handler, Stream, openai_event
from postmill.stages.serve.service import Service

_KEEP_ALIVE_S = 15.0
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Gone(Exception):
    """The client has closed the connection."""


_OPEN = ("/health", "/healthz")


class App:
    """The server as an ASGI application. `keys`: name -> key; empty asks for none. `admin_keys` open every route."""

    def __init__(self, service: Service, keys: dict[str, str], admin_keys: dict[str, str] | None = None) -> None:
        self.service, self._keys, self._admin_keys = service, keys, admin_keys or {}
        cfg = service.cfg
        self._hosts = set(cfg.allow_host)
        if not self._hosts and cfg.is_loopback:
            self._hosts = set(_LOCAL_NAMES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            return
        request = Request(scope, receive)
        call = Call(self.service, request, send)
        try:
            self._check_host(request)
            who = self._check_key(request)
            route, name = self._find(request.url.path, who)
            call.route, call.name, call.key_name = route, name, who
            methods = ROUTES[route]
            if request.method not in methods:
                allowed = ", ".join(methods)
                raise ApiError(405, "method_not_allowed", f"{route} answers {allowed}.", headers={"allow": allowed})
            await call.answer(methods[request.method])
        except ApiError as error:
            await call.refuse(error)
        finally:
            call.log()

    def _check_host(self, request: Request) -> None:
        """A page in a browser may reach this machine under a name of its own; such a name is not served."""
        if not self._hosts:
            return
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name.lower() not in self._hosts:
            raise ApiError(403, "host_not_allowed", "The Host header names another server; see --allow-host.")

    def _find(self, path: str, who: str) -> tuple[str, str]:
        """The route of a path and the name in it. Raises ApiError (403, 404)."""
        if path in ADMIN and self._admin_keys and who not in self._admin_keys:
            raise ApiError(403, "not_allowed", f"{path} asks for an admin's key.")
        if path in ROUTES and "{" not in path and (path not in ADMIN or self._admin_keys):
            return path, ""
        if path.startswith("/v1/models/"):
            return "/v1/models/{name}", path.removeprefix("/v1/models/")
        raise ApiError(404, "route_not_found", f"There is no {path[:100]!r} here.")

    def _check_key(self, request: Request) -> str:
        """The name of the key that was given. Raises ApiError (401)."""
        is_admin = bool(self._admin_keys) and request.url.path in ADMIN
        if request.url.path in _OPEN or not (self._keys or is_admin):
            return ""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.headers.get("x-api-key", "")
        # all keys are compared, in a time that tells nothing
        known = [*self._keys.items(), *self._admin_keys.items()]
        owners = [name for name, key in known if hmac.compare_digest(key.encode(), given.strip().encode())]
        if not owners:
            headers = {"www-authenticate": "Bearer"}
            raise ApiError(401, "invalid_api_key", "The API key is missing or wrong.", headers=headers)
        return owners[-1]


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class Call:
    """One request being answered."""

    def __init__(self, service: Service, request: Request, send: Send) -> None:
        self._service, self._request, self._send = service, request, send
        self.id = f"req_{secrets.token_hex(12)}"
        self.route, self.name, self.key_name = "", "", ""
        """The route, the name in its path, and whose key it is."""
        self._status = 0
        self._is_read = asyncio.Event()
        self._started = time.monotonic()

    @property
    def _is_anthropic(self) -> bool:
        return self._request.url.path.startswith("/v1/messages")

    async def body(self) -> bytes:
        """The body. Raises ApiError (413, 415)."""
        headers = self._request.headers
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "unsupported_media_type", f"The body is {kind[:60]!r}, expected application/json.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "unsupported_media_type", "The body is compressed; send it as it is.")
        most = self._service.cfg.max_body_bytes
        fault = ApiError(
            413, "request_too_large", f"The body is larger than {most} bytes.", headers={"connection": "close"}
        )
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise fault
        parts, size = [], 0
        async for part in self._request.stream():
            size += len(part)
            if size > most:
                raise fault
            parts.append(part)
        self._is_read.set()
        return b"".join(parts)

    async def answer(self, handler: Handler) -> None:
        """Run a handler and write what it gives. Raises ApiError before anything is written."""
        try:
            if self._request.method != "POST":
                self._is_read.set()
            reply = await self._unless_gone(handler(self._service, self))
            if isinstance(reply, Stream):
                try:
                    await self._unless_gone(self._write_stream(reply))
                finally:
                    self._service.forgo(reply.promised)
            elif isinstance(reply, str):
                await self._write(200, reply.encode(), "text/plain; version=0.0.4; charset=utf-8", {})
            else:
                await self._write(200, msgspec.json.encode(reply), "application/json", {})
        except (Gone, ClientDisconnect):
            self._status = self._status or 499
        except ApiError:
            raise
        except Exception as error:
            sys.stderr.write(f"serve: {self.id}\n{''.join(traceback.format_exception(error))}")
            if self._status:
                return
            raise ApiError(500, "internal_error", f"A fault of the server; its log names {self.id}.") from error

    async def refuse(self, error: ApiError) -> None:
        """Write an error, unless an answer has begun."""
        body = msgspec.json.encode(error.body(is_anthropic=self._is_anthropic, request_id=self.id))
        if not self._status:
            await self._write(error.status, body, "application/json", error.headers)

    async def _unless_gone(self, work: Awaitable[Any]) -> Any:
        """What `work` gives. Raises Gone, and ends the work, if the client leaves before."""
        doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise Gone
        finally:
            for task in (doing, leaving):
                task.cancel()
            await asyncio.gather(doing, leaving, return_exceptions=True)

    async def _gone(self) -> None:
        """Wait for the client to leave. Its body is read by the handler, so nothing is taken before that is over."""
        await self._is_read.wait()
        while True:
            message: Message = await self._request.receive()
            if message["type"] == "http.disconnect":
                return

    async def _write(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self._status = status
        given = {"content-type": kind, "content-length": str(len(body)), "x-request-id": self.id} | headers
        await self._send(_start(status, given))
        await self._send({"type": "http.response.body", "body": body})

    async def _write_stream(self, stream: Stream) -> None:
        self._status = 200
        headers = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-request-id": self.id}
        await self._send(_start(200, headers))
        events = stream.events.__aiter__()
        end = stream.end
        try:
            while True:
                waiting = asyncio.ensure_future(events.__anext__())
                while not (await asyncio.wait({waiting}, timeout=_KEEP_ALIVE_S))[0]:
                    await self._push(b": keep-alive\n\n")
                try:
                    event = waiting.result()
                except StopAsyncIteration:
                    break
                await self._push(stream.write(event))
        except ApiError as error:
            body = error.body(is_anthropic=self._is_anthropic, request_id=self.id)
            await self._push(anthropic.error_event(body) if self._is_anthropic else openai_event(body))
            end = b""
        except asyncio.CancelledError:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            raise
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # an async generator
        await self._send({"type": "http.response.body", "body": end})

    async def _push(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def log(self) -> None:
        """Count the request, and write its line."""
        self._service.metrics.requests[self.route or "none", self._status] += 1
        if self._service.cfg.log == "none" or self.route in _OPEN:
            return
        line = {
            "id": self.id,
            "key": self.key_name,
            "route": self.route,
            "status": self._status,
            "seconds": round(time.monotonic() - self._started, 4),
        }
        sys.stderr.write(msgspec.json.encode(line).decode() + "\n")


def _start(status: int, headers: dict[str, str]) -> Message:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}
