"""Who may ask the page's server: this machine, under its own name, from its own page, with the token.

A page of a stranger that is open in the same browser can send requests here too. What stops it: the Host header must be
ours (so a name that was made to point here is not served), Origin and Sec-Fetch-Site must be ours or absent, and the
token is asked for in a header that no form or image can send.
"""

import hmac
from typing import NamedTuple

from starlette.datastructures import Headers

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
MOST_BODY_BYTES = 1 << 20


class Refused(Exception):
    """What a request is answered with instead: a status and a line for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Guard(NamedTuple):
    """What a request has to show."""

    port: int
    token: str

    def check_place(self, headers: Headers) -> None:
        """Raises Refused (403) for a request that another page, or another name of this machine, sends."""
        hosts = {f"{name}:{self.port}" for name in LOCAL_NAMES}
        if self.port == 80:  # browsers leave it out
            hosts |= set(LOCAL_NAMES)
        given = headers.getlist("host")
        if len(given) != 1 or given[0].lower() not in hosts:
            raise Refused(403, "the Host header names another server")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{given[0].lower()}":
            raise Refused(403, "another page may not ask")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refused(403, "another page may not ask")

    def check_token(self, headers: Headers) -> None:
        """Raises Refused (401). The comparison takes the same time whatever is wrong."""
        given = headers.getlist("authorization")
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        is_right = hmac.compare_digest(token.encode(), self.token.encode())
        if scheme != "Bearer" or not is_right:
            raise Refused(401, "the token is missing or wrong; open the address that `postmill ui` printed")

    def check_body(self, headers: Headers) -> None:
        """Raises Refused (413, 415) for a body that is too large, or none of ours."""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body is not application/json")
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal()):
            raise Refused(411, "the length of the body is not said")
        if len(length) > 9 or int(length) > MOST_BODY_BYTES:
            raise Refused(413, f"the body is larger than {MOST_BODY_BYTES} bytes")
