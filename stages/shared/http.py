"""The HTTP server in front of an application of ours: Uvicorn, which leaves signals and logs to the caller."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from postmill.io.errors import UNAVAILABLE, StageError


def bind(host: str, port: int, who: str) -> socket.socket:
    """A socket at an address, before anything is loaded. Raises StageError (69) where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise StageError(f"{who}: {host}:{port}: {why}; choose another --port", UNAVAILABLE) from None
    return listener


def make_server(app: Any) -> Any:
    """Uvicorn with an application."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=16 << 10,
            http="h11",
            lifespan="off",
        )
    )
