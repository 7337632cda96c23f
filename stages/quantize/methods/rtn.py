"""Round to nearest: each weight to the step next to it."""

from typing import Any, ClassVar, Literal

import msgspec


class Rtn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rtn"):
    """Round each weight to the nearest step. Needs no data."""

    needs_rows: ClassVar[bool] = False

    clip: Literal["none", "mse"] = "none"
    """What a group's steps cover: none, all of its weights; mse, the range of 20 that leaves the least error."""

    def encode(self, weight_NK: Any, form: Any, dtype: Any, inputs: Any) -> Any:
        """The weight on its grid: float32 in, `Encoded` out, scales of `dtype`. `inputs` are not looked at."""
        from postmill.kernels.quantize.clip import fit_clipped
        from postmill.kernels.quantize.grid import encode, fit

        scale, zero = (fit_clipped if self.clip == "mse" else fit)(weight_NK, form, dtype)
        return encode(weight_NK, form, scale, zero)
