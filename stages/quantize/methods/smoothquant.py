"""SmoothQuant: size moves from activations, which are rounded too, into weights."""

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta


class Smoothquant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="smoothquant"):
    """Divide inputs that have outliers, and multiply their columns, before rounding both. Needs --rows, for w8a8."""

    needs_rows: ClassVar[bool] = True

    strength: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """How much of the inputs' size moves into the weights: 0 nothing of it, 1 all."""

    def scales(self, weights: list[Any], form: Any, dtype: Any, *, moment: Any, largest: Any) -> Any:
        """Scales [K] of the inputs that `weights` share. largest: the largest size of each input."""
        from postmill.kernels.quantize.folding import smooth_scales

        return smooth_scales(weights, largest, self.strength)

    def encode(self, weight_NK: Any, form: Any, dtype: Any, inputs: Any) -> Any:
        """The weight on its grid: float32 in, `Encoded` out, scales of `dtype`. `inputs` are not looked at."""
        from postmill.kernels.quantize.grid import encode, fit

        return encode(weight_NK, form, *fit(weight_NK, form, dtype))
