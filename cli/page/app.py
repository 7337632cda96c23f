"""The page's server: the page, which holds nothing, and behind the token what it asks for.

The token is in the part of the address that browsers do not send; the page sends it as a header with each question. So
it is in no log, no referrer and no history of requests.
"""

import asyncio
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from postmill.cli.page import page, plan, preview, talk
from postmill.cli.page.guard import MOST_BODY_BYTES, Guard, Refused
from postmill.cli.page.jobs import Jobs
from postmill.cli.page.look import curves, estimated, viewed
from postmill.cli.page.places import Folder

_TICKET_S = 60.0
_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Named(msgspec.Struct, forbid_unknown_fields=True):
    """A thing by its name or path."""

    name: str


class App:
    """The server as an ASGI application, for one folder."""

    def __init__(self, folder: Folder, guard: Guard, *, allow_run: bool, env: dict[str, str]) -> None:
        """`env`: that of the processes it starts."""
        self._folder, self._guard, self._allow_run = folder, guard, allow_run
        self.jobs = Jobs(folder.root, env)
        self.talks = talk.Talks(folder, env)
        self._tickets: dict[str, tuple[float, Path]] = {}
        self._page, self._policy = page.build()
        self._asks: dict[str, tuple[type[Any] | None, Callable[[Any], Any]]] = {
            "about": (None, self._about),
            "files": (None, lambda _: self._folder.listing()),
            "plan": (plan.Ask, lambda ask: plan.read(ask, self._folder)),
            "masks": (preview.Ask, lambda ask: preview.masks(ask, self._folder)),
            "estimate": (plan.Ask, lambda ask: estimated(ask, self._folder)),
            "curves": (Named, lambda ask: curves(self._folder.path(ask.name))),
            "view": (Named, self._view),
            "jobs": (None, lambda _: self.jobs.all()),
            "job": (Named, lambda ask: self.jobs.look(ask.name)),
        }
        self._acts: dict[str, tuple[type[Any] | None, Callable[[Any], Any]]] = {
            "run": (plan.Ask, self._run),
            "stop": (Named, lambda ask: self.jobs.stop(ask.name)),
            "resume": (Named, lambda ask: self.jobs.resume(ask.name)),
            "talk": (talk.Open, self.talks.open),
            "say": (talk.Say, self.talks.say),
            "hang-up": (None, lambda _: self.talks.close()),
        }
        """What starts or ends processes: refused unless the server was told to allow it."""

    @property
    def routes(self) -> list[str]:
        """Every question there is."""
        return [*self._asks, *self._acts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            self._guard.check_place(request.headers)
            status, kind, body, more = await self._answer(request)
        except Refused as error:
            status, kind, more = error.status, "application/json", {"connection": "close"}
            body = msgspec.json.encode({"error": error.message})
        except ClientDisconnect:
            return
        except Exception as error:
            sys.stderr.write("".join(traceback.format_exception(error)))
            status, kind, more = 500, "application/json", {}
            body = msgspec.json.encode({"error": f"{type(error).__name__}: {error}; this is a bug of ours"})
        headers = _HEADERS | {"content-type": kind, "content-length": str(len(body))} | more
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body if request.method != "HEAD" else b""})

    async def _answer(self, request: Request) -> tuple[int, str, bytes, dict[str, str]]:
        path = request.url.path
        if path == "/" and request.method in ("GET", "HEAD"):
            return 200, "text/html; charset=utf-8", self._page, {"content-security-policy": self._policy}
        if path.startswith("/seen/") and request.method == "GET":
            return await asyncio.to_thread(self._seen, path.removeprefix("/seen/"))
        self._guard.check_token(request.headers)
        name = path.removeprefix("/api/")
        known = self._asks.get(name) or self._acts.get(name)
        if known is None or not path.startswith("/api/"):
            raise Refused(404, "there is no such page")
        if request.method != "POST":
            raise Refused(405, "questions are sent with POST")
        if name in self._acts and not self._allow_run:
            raise Refused(403, "this page may not run anything; start it with `postmill ui --allow-run`")
        kind, function = known
        ask = await self._body(request, kind)
        answer = await asyncio.to_thread(function, ask)
        return 200, "application/json", msgspec.json.encode(answer), {}

    async def _body(self, request: Request, kind: type[Any] | None) -> Any:
        """What was asked. Raises Refused (400, 411, 413, 415)."""
        self._guard.check_body(request.headers)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > MOST_BODY_BYTES:
                raise Refused(413, f"the body is larger than {MOST_BODY_BYTES} bytes")
            parts.append(part)
        try:
            return msgspec.json.decode(b"".join(parts), type=kind or dict[str, Any])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Refused(400, f"{error}"[:200]) from None

    def _about(self, _: Any) -> dict[str, Any]:
        from postmill.cli.chain import RECIPES
        from postmill.cli.recipe import summary

        recipes = [{"name": path.stem, "about": summary(path)} for path in sorted(RECIPES.glob("*.toml"))]
        return {"folder": str(self._folder.root), "allow_run": self._allow_run, "recipes": recipes}

    def _run(self, ask: plan.Ask) -> dict[str, str]:
        planned = plan.read(ask, self._folder)
        if planned.faults:
            raise Refused(400, "\n".join(planned.faults))
        return {"name": self.jobs.start(planned.argv, ask.output)}

    def _view(self, ask: Named) -> dict[str, str]:
        """An address for one look at an artifact: a new tab sends no header, so it gets a name that nobody guesses."""
        path = self._folder.path(ask.name)
        now = time.monotonic()
        self._tickets = {name: one for name, one in self._tickets.items() if one[0] > now}
        name = secrets.token_urlsafe(24)
        self._tickets[name] = (now + _TICKET_S, path)
        return {"address": f"/seen/{name}"}

    def _seen(self, name: str) -> tuple[int, str, bytes, dict[str, str]]:
        until, path = self._tickets.pop(name, (0.0, Path()))
        if until < time.monotonic():
            raise Refused(404, "this address was for one look; go back to the page")
        # an origin of its own: what is in rows could not read the page even if it became code
        policy = {"content-security-policy": "sandbox allow-scripts; frame-ancestors 'none'"}
        return 200, "text/html; charset=utf-8", viewed(path), policy
