"""GPTQ: rounding errors made up for by the weights that are rounded later."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta


class Gptq(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gptq"):
    """Round column by column, each column's error made up for in those that follow. Needs --rows."""

    needs_rows: ClassVar[bool] = True

    damp: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Share of the inputs' mean square that is added to each: larger trusts the rows less."""
    order: Literal["static", "none"] = "static"
    """Columns with the largest inputs first, on grids fitted beforehand (static), or as they come (none)."""

    def encode(self, weight_NK: Any, form: Any, dtype: Any, inputs: Any) -> Any:
        """The weight on its grid: float32 in, `Encoded` out, scales of `dtype`.

        inputs: sum of x x^T over the layer's inputs, float32 [K, K]; None rounds to nearest.
        """
        from postmill.kernels.quantize.gptq import solve
        from postmill.kernels.quantize.grid import encode, fit

        if inputs is None:
            return encode(weight_NK, form, *fit(weight_NK, form, dtype))
        return solve(weight_NK, inputs, form, dtype, damp=self.damp, sort=self.order == "static")
