"""Options of advantages by token."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class ByToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What tokens are worth one by one."""

    gamma: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """What a reward one token later is worth, for `gae`."""
    lam: Annotated[float, Meta(ge=0, le=1)] = 0.95
    """How far `gae` looks past the critic: 0 believes its next value, 1 takes what was earned."""
    whiten: bool = True
    """Shift and scale `gae` advantages to mean 0 and deviation 1 over all tokens."""
    kl_coef: Annotated[float, Meta(ge=0)] = 0.0
    """Taken from the reward, times the divergence from --ref: at each token for `gae`, in total for the others."""
    kl: Literal["k1", "k3"] = "k1"
    """Estimate of that divergence: the difference of log-probs, or the one that is never negative."""
    teacher_coef: Annotated[float, Meta(ge=0)] = 1.0
    """With --teacher, each token's advantage grows by this times how much likelier the teacher finds it."""
