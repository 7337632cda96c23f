"""Full training of a few layers at a time: gradients and the optimizer's state are only theirs."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Start, Tuner


class Lisa(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lisa"):
    """Embedding, head and a few layers drawn anew every so many steps (LISA, <https://arxiv.org/abs/2403.17919>)."""

    default_lr: ClassVar[float] = 1e-5
    makes: ClassVar[str] = "model"

    layers: Annotated[int, Meta(ge=1)] = 2
    """Layers that are trained at a time."""
    every: Annotated[int, Meta(ge=1)] = 20
    """Steps until others are drawn."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.blockwise_model import blockwise_tuner, draw

        def choose(period: int, num_blocks: int, given: "Start") -> list[int]:
            return draw(given.seed, period, num_blocks, self.layers)

        return blockwise_tuner(self.every, choose, outside=True)


class Badam(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="badam"):
    """One layer after the other, each with a fresh optimizer (BAdam, <https://arxiv.org/abs/2404.02827>)."""

    default_lr: ClassVar[float] = 1e-5
    makes: ClassVar[str] = "model"

    every: Annotated[int, Meta(ge=1)] = 50
    """Steps until the next layer."""
    order: Literal["random", "ascending", "descending"] = "random"
    """Order of the layers; random: another one each time round."""
    outside: bool = False
    """Train embedding, last norm and head all the time, too."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.blockwise_model import blockwise_tuner, draw

        def choose(period: int, num_blocks: int, given: "Start") -> list[int]:
            turn, place = divmod(period, num_blocks)
            if self.order == "random":
                return [draw(given.seed, turn, num_blocks, num_blocks)[place]]
            return [place if self.order == "ascending" else num_blocks - 1 - place]

        return blockwise_tuner(self.every, choose, outside=self.outside)
