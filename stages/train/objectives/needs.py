"""What an objective asks of the model, the data and the step. Read before torch loads: it decides what is refused."""

from typing import Literal

import msgspec

from postmill.stages.shared.heads import LM, Head
from postmill.stages.shared.stats import Stat

Coupling = Literal["row", "group", "step_constants", "step_gradients"]


class Needs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cheap half of an objective."""

    head: Head = LM
    """What stands on the layers."""
    stats: frozenset[Stat] = frozenset()
    """What is computed of the lm head. Nothing asked and `linear`: the cheap fused path."""
    columns: tuple[str, ...] = ()
    """Columns that must be there, by the names of `batch.ALIGNMENT`: ref_logp, label, ..."""
    own: tuple[str, ...] = ()
    """Those of `columns` that are of the weights a run starts from: where they are not given, train computes them
    before the first of several steps, and a run of one step does without."""
    sampled: bool = False
    """Rows are samples with rewards. Log-probs are at the temperature of the sampling."""
    compares_sampler: bool = False
    """Log-probs of the sampler decide what is learned, so they have to be those of its choices."""
    temperature: float = 1.0
    """What logits are divided by in the model whose likeliest tokens are compared with."""
    partner_columns: tuple[str, ...] = ()
    """Where given, the first pass of `step_constants` sees prompts with other rows' answers (`io/partners.py`), with
    these columns."""
    group: Literal["row", "pair", "list"] = "row"
    """Rows that have to lie in one bin: those of a `pair_id`, or none."""
    coupling: Coupling = "row"
    """What one term of the loss looks at: a row, a group of a bin, or numbers of the whole step, which a first pass
    without gradients measures (step_constants) or whose gradients it finds (step_gradients)."""
    measures: tuple[str, ...] = ("tokens",)
    """What sums are divided by, the names of `plan.MEASURES`. The first is the `normaliser` of the record."""
    linear: bool = False
    """The loss is the sum of weight * -log-prob with weights known before the forward pass."""


PAIRS_WITHOUT_REFERENCE = Needs(
    stats=frozenset({"logp"}), group="pair", coupling="group", measures=("groups", "chosen_tokens")
)
"""Of CPO and its kin."""
