"""Options of full training: every weight is trained."""

from typing import ClassVar

import msgspec


class Full(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="full"):
    """Every weight is trained."""

    default_lr: ClassVar[float] = 1e-5
