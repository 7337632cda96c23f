"""Options of judges: models behind a URL that grade answers by a rubric."""

from typing import Annotated

import msgspec
from msgspec import Meta

from postmill.stages.spec import SAME_BYTES


class Judge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model at --url grades answers by --rubric."""

    lowest: float = 0.0
    """Worst grade; it becomes the score 0."""
    highest: float = 10.0
    """Best grade; it becomes the score 1."""
    grade_tokens: Annotated[int, Meta(ge=1)] = 512
    """Longest reply of the judge, in tokens."""
    grade_temperature: Annotated[float, Meta(ge=0)] = 0.0
    """At which it answers."""
    grade_tries: Annotated[int, Meta(ge=1)] = 2
    """Times to ask when a reply has no grade. After the last one the score is missing, with the reason no_grade."""
    judges: Annotated[int, Meta(ge=1), SAME_BYTES] = 8
    """Requests under way at a time."""

    def __post_init__(self) -> None:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest:g} is not below highest {self.highest:g}")
