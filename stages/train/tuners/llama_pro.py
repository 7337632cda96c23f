"""LLaMA Pro: new layers between the old ones, which alone are trained, <https://arxiv.org/abs/2401.02415>."""

from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Tuner


class LlamaPro(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="llama-pro"):
    """Copies of layers that begin as the identity; they alone are trained. The result is a deeper model."""

    default_lr: ClassVar[float] = 2e-4
    makes: ClassVar[str] = "model"

    blocks: Annotated[int, Meta(ge=1)] = 4
    """New layers: one after each of so many groups of old ones; divides the number of layers."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.llama_pro_model import llama_pro_tuner

        return llama_pro_tuner(self.blocks)
