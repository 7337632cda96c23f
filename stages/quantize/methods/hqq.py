"""HQQ: zero points found by half-quadratic splitting."""

from typing import Any, ClassVar

import msgspec


class Hqq(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="hqq"):
    """Move zero points so that few weights are wrong by much. Needs no data, and --no-symmetric."""

    needs_rows: ClassVar[bool] = False

    def encode(self, weight_NK: Any, form: Any, dtype: Any, inputs: Any) -> Any:
        """The weight on its grid: float32 in, `Encoded` out, scales of `dtype`. `inputs` are not looked at."""
        from postmill.kernels.quantize.grid import encode
        from postmill.kernels.quantize.hqq import fit_half_quadratic

        scale, zero = fit_half_quadratic(weight_NK, form, dtype)
        return encode(weight_NK, form, scale, zero)
