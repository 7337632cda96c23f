"""A server of ours on a real socket, in a thread of the test's process."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from postmill.stages.runner import find_inputs
from postmill.stages.serve.config import STAGE, Serve
from postmill.stages.serve.run import load, make_server
from postmill.stages.shared.http import bind


class Served:
    """Where it answers, and what it is."""

    def __init__(self, url: str, service: Any) -> None:
        self.url, self.service = url, service


@contextlib.contextmanager
def serving(
    model: Path,
    *,
    adapters: tuple[str, ...] = (),
    keys: dict[str, str] | None = None,
    admin_keys: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[Served]:
    """A server on a free port, until the block ends."""
    cfg = Serve(**({"port": 0, "log": "none"} | options))
    service = load(cfg, find_inputs(STAGE, {"served": [str(model)], "adapter": list(adapters)}), threads=1)
    listener = bind(cfg.host, cfg.port, "serve")
    server = make_server(service, keys or {}, admin_keys)

    async def run() -> None:
        service.worker.start()
        await server.serve(sockets=[listener])
        service.worker.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():  # until then connections are refused
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
