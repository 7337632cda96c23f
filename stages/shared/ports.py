"""Ports of this machine."""

import socket


def free_port() -> int:
    """A port that nobody has now, on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
