"""Options of a loss of one's own: a function in a Python file."""

from typing import Any, Literal

import msgspec

from postmill.stages.shared.stats import Stat
from postmill.stages.train.objectives.needs import Needs


class Own(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="own"):
    """A loss of your own: `--objective my_file.py:loss`, a function of what the model says and of the batch."""

    stats: list[Stat] = msgspec.field(default_factory=lambda: ["logp"])
    """What is computed of each trained token: logp, entropy, correct, lse, collision."""
    columns: list[Literal["ref_logp", "label", "margin"]] = []
    """What else the function reads in `batch.columns`; ref_logp comes from `--scores ref=DIR`."""
    group: Literal["row", "pair"] = "row"
    """pair: the two halves of a pair lie in one batch."""
    normalize: Literal["tokens", "weights", "rows", "groups"] = "tokens"
    """What the function is given to divide by, of the whole step: trained tokens, the weights' sum, rows, or pairs."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(
            stats=frozenset(self.stats),
            columns=tuple(self.columns),
            group=self.group,
            coupling="group" if self.group == "pair" else "row",
            measures=(self.normalize,),
        )

    def build(self) -> Any:
        """Never: the function is an input, see `own.build_objective`."""
        raise NotImplementedError
