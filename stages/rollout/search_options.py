"""Options of search: which of many ways to go on is taken."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Search(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers that are looked for step by step, with --guide or --prm."""

    search: Literal["none", "best_of_n", "beam", "dvts", "mcts"] = "none"
    """How answers are looked for, judged by --guide or --prm. `best_of_n`: beams * width whole answers; `beam`: after
    each step the best `beams` of all ways to go on; `dvts`: `beams` searches side by side, each keeps its best way
    (diverse verifier tree search); `mcts`: a tree that grows where the best is to be expected, until `search_tokens`
    were sampled. The `samples` best answers are written, the best first."""
    beams: Annotated[int, Meta(ge=1, le=1024)] = 2
    """Answers that are kept after each step."""
    width: Annotated[int, Meta(ge=1, le=1024)] = 4
    """Ways to go on that are tried from each of them."""
    step_text: str = "\n"
    """What ends a step."""
    step_tokens: Annotated[int, Meta(ge=1)] = 128
    """Longest step in tokens."""
    search_tokens: Annotated[int, Meta(ge=1)] = 2048
    """Tokens of all tries for a prompt, after which `mcts` stops growing."""
    playouts: Annotated[int, Meta(ge=0, le=1024)] = 1
    """Whole answers that `mcts` samples from each new step; the step is worth what they are, on average. 0 judges the
    step itself, which needs a guide of steps."""
    explore: Annotated[float, Meta(ge=0)] = 1.0
    """How much `mcts` is drawn to steps that were seldom tried."""
    right_at: float = 0.5
    """Score from which on a whole answer of `mcts` is right. Its rows list for each step whether an answer that goes on
    from it was: labels for train --objective prm."""
