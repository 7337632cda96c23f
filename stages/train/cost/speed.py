"""Time of a step on a layout: operations over what a GPU reaches, and the bytes that its links carry.

A few constants a kind of GPU were tuned on 17 published runs, whose times it then gives with a median error of 7%, 16
of 17 within 20% (`tests/stages/train/cost/test_speed.py`); without tuning the error was 30%. That is good enough to
rank layouts and to tell hours from days. Mixtures of experts with small experts are where it is worst.
"""

from typing import NamedTuple

from postmill.stages.train.cost.machines import Kind
from postmill.stages.train.cost.shape import Shape

_SMALL = 4096
_MEMORY_BYTES_S = 2.4e12


class Constants(NamedTuple):
    """What was tuned beside `Kind.share` and `Kind.fp8`."""

    tp_cost: float = 0.03
    """Share of the time that smaller matrices lose under tensor parallelism."""
    small_experts: float = 0.72
    """Of the share that dense products reach; experts narrower than 4,096."""
    experts: float = 0.95
    """The same, of wider ones."""
    hidden_tp: float = 0.6
    """Share of what is sent that still takes time: activations of tensor parallelism."""
    hidden_ep: float = 0.7
    """Tokens on their way to experts."""
    hidden_cp: float = 0.3
    """Keys and values of context parallelism."""
    hidden_gradients: float = 0.5
    """Gradients of copies."""
    hidden_gathers: float = 0.8
    """Share of gathers that computing hides."""
    gather_s: float = 1.5e-3
    """One gather of one expert's matrix under ZeRO-3, where experts lie apart."""


TUNED = Constants()


class Plan(NamedTuple):
    """A layout and what is computed on it."""

    ranks: int
    step_tokens: int
    row_tokens: int
    tp: int = 1
    pp: int = 1
    stages: int = 1
    """Pieces of the model that each rank of a pipeline holds."""
    cp: int = 1
    ep: int = 1
    micro_rows: int = 1
    checkpointing: bool = False
    fp8: bool = False
    sharded: bool = False
    """Weights are gathered when they are needed."""
    state_sharded: bool = True
    """The optimizer's state is dealt to the data ranks."""
    weight_bytes: int = 2
    gradient_bytes: int = 4
    experts_apart: bool = False
    """Each expert's matrices are gathered alone."""


class Speed(NamedTuple):
    """Of one step."""

    seconds: float
    tokens_per_gpu: float
    """A second."""
    flops_per_gpu: float
    """A second, of the model alone: what is computed again does not count."""
    bubble: float
    """Share of the time that a pipeline waits."""


def step_speed(shape: Shape, kind: Kind, plan: Plan, by: Constants = TUNED) -> Speed:
    """How long a step takes."""
    data = plan.ranks // (plan.tp * plan.pp * plan.cp)
    forward = 2 * shape.active + shape.layers * 2 * plan.row_tokens * shape.queries
    flops = 3 * forward
    micro_batches = plan.step_tokens / plan.row_tokens / data / plan.micro_rows
    of_one = _compute_s(shape, kind, plan, flops + (forward if plan.checkpointing else 0), by)
    of_one += _sent_s(shape, kind, plan, by)
    bubble = (plan.pp - 1) / (micro_batches * plan.stages)
    seconds = micro_batches * of_one * (1 + bubble) + _gradients_s(shape, kind, plan, micro_batches, of_one, by=by)
    return Speed(
        seconds,
        plan.step_tokens / seconds / plan.ranks,
        plan.step_tokens * flops / seconds / plan.ranks,
        bubble,
    )


def _compute_s(shape: Shape, kind: Kind, plan: Plan, flops: float, by: Constants) -> float:
    """A micro-batch's matrix products on one rank."""
    reached = kind.peak * kind.share * (kind.fp8 if plan.fp8 else 1.0) * (1 - by.tp_cost * (plan.tp > 1))
    if shape.experts:
        reached *= by.small_experts if shape.inner < _SMALL else by.experts
    seconds = plan.micro_rows * plan.row_tokens * flops / (plan.tp * plan.pp * plan.cp) / reached
    if plan.experts_apart:
        seconds += shape.layers * shape.experts * 3 * 3 * by.gather_s
    return seconds


def _sent_s(shape: Shape, kind: Kind, plan: Plan, by: Constants) -> float:
    """What a micro-batch waits for links within the model."""
    again, blocks = plan.checkpointing, shape.layers / plan.pp
    activation = plan.micro_rows * plan.row_tokens / plan.cp * shape.hidden * 2
    link = kind.link if plan.tp <= 8 else kind.network
    tensor = blocks * (12 if again else 8) * activation * (plan.tp - 1) / plan.tp / link
    context = blocks * 6 * plan.micro_rows * plan.row_tokens * shape.keys * 2 * (plan.cp - 1) / plan.cp / kind.network
    experts = 0.0
    if shape.experts:
        within = kind.link if plan.ep * plan.tp <= 8 else kind.network * (8 / 7 if plan.ep > 8 else 1)
        sent = blocks * (6 if again else 4) * activation / plan.tp * shape.chosen
        experts = sent * (plan.ep - 1) / plan.ep / within
    return tensor * by.hidden_tp + experts * by.hidden_ep + context * by.hidden_cp


def weights_of_rank(shape: Shape, plan: Plan) -> float:
    """Weights that a rank's copy has before sharding."""
    experts = shape.layers * shape.experts * 3 * shape.hidden * shape.inner
    return (shape.weights - experts) / plan.tp / plan.pp + experts / plan.ep / plan.pp


def _gradients_s(shape: Shape, kind: Kind, plan: Plan, micro_batches: float, of_one: float, *, by: Constants) -> float:
    """What a step waits for gradients, gathers and the update."""
    data = plan.ranks // (plan.tp * plan.pp * plan.cp)
    mine = weights_of_rank(shape, plan)
    if plan.sharded:
        link = kind.network if plan.ranks > 8 else kind.link
        gathers = micro_batches * 3 * shape.weights / plan.tp * plan.weight_bytes / link
        waited = max(0.0, gathers - by.hidden_gathers * micro_batches * of_one)
    elif data > 1:
        link = kind.network if data * plan.tp > 8 else kind.link
        waited = mine * (plan.weight_bytes + plan.gradient_bytes) / link * by.hidden_gradients
    else:
        waited = 0.0
    return waited + mine * 16 / _MEMORY_BYTES_S / (data if plan.state_sharded else 1)
