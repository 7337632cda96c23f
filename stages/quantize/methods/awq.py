"""AWQ: large inputs get finer steps."""

from typing import Any, ClassVar, Literal

import msgspec


class Awq(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="awq"):
    """Scale columns by the size of their inputs, and the norm before them the other way. Needs --rows."""

    needs_rows: ClassVar[bool] = True

    clip: Literal["outputs", "none"] = "outputs"
    """What a group's steps cover: of 20 ranges the one that changes its outputs least (outputs), or all weights."""

    def scales(self, weights: list[Any], form: Any, dtype: Any, *, moment: Any, largest: Any) -> Any:
        """Scales [K] of the inputs that `weights` share, or None for none. moment: sum of x x^T over them."""
        from postmill.kernels.quantize.folding import awq_scales, nearest

        return awq_scales(weights, moment, lambda weight: nearest(weight, form, dtype))

    def encode(self, weight_NK: Any, form: Any, dtype: Any, inputs: Any) -> Any:
        """The weight on its grid: float32 in, `Encoded` out, scales of `dtype`.

        inputs: sum of x x^T over the layer's inputs, float32 [K, K]; None rounds to nearest.
        """
        from postmill.kernels.quantize.folding import fit_to_inputs
        from postmill.kernels.quantize.grid import encode, fit

        if inputs is None or self.clip == "none":
            return encode(weight_NK, form, *fit(weight_NK, form, dtype))
        return fit_to_inputs(weight_NK, form, dtype, inputs)
