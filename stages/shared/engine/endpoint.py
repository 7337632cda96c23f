"""How to reach a model by URL: options that stages share."""

from typing import Annotated

import msgspec
from msgspec import Meta

from postmill.stages.spec import SAME_BYTES


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model behind a URL that speaks OpenAI's API, in place of one here."""

    url: str = ""
    """Ask this server instead of a model here: the URL before /v1, as `http://127.0.0.1:8000`."""
    url_model: str = ""
    """Name of the model there. Default: the only one, or the first that it lists."""
    key_file: Annotated[str, SAME_BYTES] = ""
    """File whose first line is the key for the server."""
    rate: Annotated[float, Meta(ge=0), SAME_BYTES] = 0.0
    """Most requests a second; 0 asks as fast as answers come."""
    tries: Annotated[int, Meta(ge=1), SAME_BYTES] = 5
    """Times to ask when the server is busy or away, with growing pauses, or those that it names."""
    timeout_s: Annotated[float, Meta(gt=0), SAME_BYTES] = 600.0
    """Longest wait for one answer, in seconds."""

    def __post_init__(self) -> None:
        if not self.url and (self.url_model or self.key_file):
            raise ValueError("url_model and key_file need url")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.url!r}: expected http:// or https://")
