"""Options of search: which of many ways to go on is taken."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Search(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers that are looked for step by step, with --guide or --prm."""

    search: Literal["none", "best_of_n", "beam", "dvts"] = "none"
    """How answers are looked for, judged by --guide or --prm. `best_of_n`: beams * width whole answers; `beam`: after
    each step the best `beams` of all ways to go on; `dvts`: `beams` searches side by side, each keeps its best way
    (diverse verifier tree search). The `samples` best answers are written, the best first."""
    beams: Annotated[int, Meta(ge=1, le=1024)] = 2
    """Answers that are kept after each step."""
    width: Annotated[int, Meta(ge=1, le=1024)] = 4
    """Ways to go on that are tried from each of them."""
    step_text: str = "\n"
    """What ends a step."""
    step_tokens: Annotated[int, Meta(ge=1)] = 128
    """Longest step in tokens."""
