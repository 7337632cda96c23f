"""What may be asked of a model and its head on a batch, and the answers. Shape letters: T tokens, R rows, K entries."""

from typing import NamedTuple

from torch import Tensor

from postmill.kernels.loss_scale_ce.terms import LossOutput
from postmill.stages.shared.context import Context
from postmill.stages.shared.stats import Stat


class Linear(NamedTuple):
    """A loss whose weights are known before the forward pass: sum of weights_T * -log-prob / normaliser."""

    weights_T: Tensor
    normaliser: float
    label_smoothing: float = 0.0
    """Used in training only."""


class Ask(NamedTuple):
    """What is wanted of a batch."""

    stats: frozenset[Stat] = frozenset()
    """Numbers of the lm head, at the tokens of `Batch.mask_T`."""
    linear: Linear | None = None
    """The fused loss. Alone, without `stats`, it is the cheap path."""
    temperature: float = 1.0
    """What the logits are divided by, after the soft cap."""
    top_ids_TK: Tensor | None = None
    """int64 [T, K]: entries of the vocabulary whose log-probs are wanted; `stats` has lse then."""
    num_top: int = 0
    """How many of each token's likeliest successors are wanted, without gradients."""
    points_N: Tensor | None = None
    """int64: tokens that a token head reads."""
    router_share: float = 0.0
    """The batch's share of the step's tokens: the weight of its routers' balancing loss."""


class Outputs(NamedTuple):
    """The answers; None where nothing was asked. Differentiable but for `correct_T` and `collision_T`.

    Those of tokens are [T], 0 where `Batch.mask_T` is not set.
    """

    loss: Tensor | None = None
    """The linear loss."""
    logp_T: Tensor | None = None
    entropy_T: Tensor | None = None
    correct_T: Tensor | None = None
    lse_T: Tensor | None = None
    collision_T: Tensor | None = None
    """log sum_v p_v^2."""
    top_logp_TK: Tensor | None = None
    """float32: of the entries that were asked for, or of the likeliest ones."""
    top_ids_TK: Tensor | None = None
    """int64: which the likeliest ones are."""
    values_NC: Tensor | None = None
    """float32: what a classifier says of each row, or of each token that was asked for."""
    pooled_RH: Tensor | None = None
    """float32: the vector of each row, not normalised."""
    router: Tensor | None = None
    """The routers' balancing loss times its coefficient and share; to be added to the loss."""


def part_of(ask: Ask, context: Context) -> Ask:
    """What is asked of this rank's slice."""
    linear = ask.linear
    return ask if linear is None else ask._replace(linear=linear._replace(weights_T=context.slice(linear.weights_T)))


def joined(context: Context, found: LossOutput, num_tokens: int) -> LossOutput:
    """What the ranks found for their slices, as one rank would have found it."""
    of_tokens = {
        name: context.gather(value, num_tokens)
        for name in ("logp_T", "entropy_T", "correct_T", "lse_T", "collision_T")
        if (value := getattr(found, name)) is not None
    }
    return found._replace(loss=context.total(found.loss), **of_tokens)
