"""Options of the optimizers, and the table of them. `make` is the only part that needs torch.

Checkpoints hold whatever state an optimizer keeps of a parameter, by the name it has there.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from postmill.stages.spec import Choice

if TYPE_CHECKING:
    import torch

Decay = Annotated[float, Meta(ge=0)]
Memory = Annotated[float, Meta(ge=0, lt=1)]


class AdamW(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="adamw"):
    """Adam with decoupled weight decay, <https://arxiv.org/abs/1711.05101>."""

    shards: ClassVar[bool] = True
    """Whether its state lies as the parameter does, so that `--shard fsdp` can split it."""

    weight_decay: Decay = 0.1
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Memory = 0.9
    """Memory of the gradient."""
    beta2: Memory = 0.95
    """Memory of its square."""
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        import torch

        groups = decay_groups(parameters, self.weight_decay)
        return torch.optim.AdamW(groups, lr=lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)


class Sgd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sgd"):
    """Gradient descent with momentum."""

    shards: ClassVar[bool] = True

    weight_decay: Decay = 0.0
    """Weight decay of matrices; norms and biases have none."""
    momentum: Memory = 0.9
    """Memory of the gradient; 0 keeps no state."""
    nesterov: bool = False
    """Look ahead along the momentum (Nesterov)."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        import torch

        groups = decay_groups(parameters, self.weight_decay)
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=self.nesterov)


class Lion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lion"):
    """Steps of equal size in the direction of the sign, <https://arxiv.org/abs/2302.06675>; a third of AdamW's rate."""

    shards: ClassVar[bool] = True

    weight_decay: Decay = 0.3
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Memory = 0.9
    """Share of the momentum in the direction of a step."""
    beta2: Memory = 0.99
    """Memory of the gradient."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        from postmill.stages.train.own_optimizers import LionOptimizer

        return LionOptimizer(decay_groups(parameters, self.weight_decay), lr=lr, betas=(self.beta1, self.beta2))


class Adafactor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="adafactor"):
    """AdamW's second moment as a row times a column: next to no state, <https://arxiv.org/abs/1804.04235>."""

    shards: ClassVar[bool] = False

    weight_decay: Decay = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta2_decay: Annotated[float, Meta(lt=0)] = -0.8
    """Exponent by which the memory of the squares grows with the steps."""
    update_clip: Annotated[float, Meta(gt=0)] = 1.0
    """Root mean square that an update is cut to."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        import torch

        groups = decay_groups(parameters, self.weight_decay)
        return torch.optim.Adafactor(groups, lr=lr, beta2_decay=self.beta2_decay, d=self.update_clip)


class Muon(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="muon"):
    """Orthogonal steps for matrices, AdamW for embeddings, head and vectors, <https://kellerjordan.github.io/posts/muon/>.

    Its rate is scaled so that AdamW's fits (<https://arxiv.org/abs/2502.16982>).
    """

    shards: ClassVar[bool] = False

    weight_decay: Decay = 0.1
    """Decoupled weight decay of matrices; norms and biases have none."""
    momentum: Memory = 0.95
    """Memory of the gradient of matrices."""
    beta1: Memory = 0.9
    """Memory of the gradient of the rest."""
    beta2: Memory = 0.95
    """Memory of the square of the rest's gradient."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        import torch

        from postmill.stages.train.own_optimizers import Joined

        matrices = {name: p for name, p in parameters.items() if is_inner_matrix(name, p)}
        rest = {name: p for name, p in parameters.items() if name not in matrices}
        made: list[torch.optim.Optimizer] = []
        if matrices:
            made.append(
                torch.optim.Muon(
                    list(matrices.values()),
                    lr=lr,
                    weight_decay=self.weight_decay,
                    momentum=self.momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if rest:
            groups = decay_groups(rest, self.weight_decay)
            made.append(torch.optim.AdamW(groups, lr=lr, betas=(self.beta1, self.beta2), fused=True))
        return Joined(made)


class AdamW8bit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="adamw-8bit"):
    """AdamW with moments of eight bits, in blocks (<https://arxiv.org/abs/2110.02861>): a quarter of the state."""

    shards: ClassVar[bool] = False

    weight_decay: Decay = 0.1
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Memory = 0.9
    """Memory of the gradient."""
    beta2: Memory = 0.95
    """Memory of its square."""
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        from postmill.stages.train.small_state_optimizers import AdamW8bitOptimizer

        groups = decay_groups(parameters, self.weight_decay)
        return AdamW8bitOptimizer(groups, lr=lr, betas=(self.beta1, self.beta2), eps=self.eps)


class ScheduleFree(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="schedule-free"):
    """AdamW that averages its steps, so that no schedule is needed, <https://arxiv.org/abs/2405.15682>.

    Use it with `--schedule constant`. Validation and the result are the average.
    """

    shards: ClassVar[bool] = True

    weight_decay: Decay = 0.1
    """Weight decay of matrices; norms and biases have none."""
    beta1: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    """How near to the average gradients are taken."""
    beta2: Memory = 0.95
    """Memory of the gradient's square."""
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        from postmill.stages.train.small_state_optimizers import ScheduleFreeAdamW

        groups = decay_groups(parameters, self.weight_decay)
        return ScheduleFreeAdamW(groups, lr=lr, betas=(self.beta1, self.beta2), eps=self.eps)


class GaLore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="galore"):
    """AdamW on the main directions of each matrix's gradient (<https://arxiv.org/abs/2403.03507>)."""

    shards: ClassVar[bool] = False

    rank: Annotated[int, Meta(ge=1)] = 128
    """Directions that are kept of each matrix; matrices that are not larger are left to AdamW."""
    gap: Annotated[int, Meta(ge=1)] = 200
    """Steps until the directions are found anew."""
    scale: Annotated[float, Meta(gt=0)] = 0.25
    """Strength of the projected updates."""
    weight_decay: Decay = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Memory = 0.9
    """Memory of the gradient."""
    beta2: Memory = 0.95
    """Memory of its square."""
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        from postmill.stages.train.low_rank_optimizers import LowRankAdamW, galore

        options = {"rank": self.rank, "gap": self.gap, "scale": self.scale}
        groups = low_rank_groups(parameters, self.weight_decay, options)
        return LowRankAdamW(groups, galore, lr=lr, betas=(self.beta1, self.beta2), eps=self.eps)


class QGaLore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="q-galore"):
    """GaLore with a projection of four or eight bits, found anew less often where it settles, and moments of eight
    (<https://arxiv.org/abs/2407.08296>). Weights stay float32."""

    shards: ClassVar[bool] = False

    rank: Annotated[int, Meta(ge=1)] = 128
    """Directions that are kept of each matrix; matrices that are not larger are left to AdamW."""
    gap: Annotated[int, Meta(ge=1)] = 200
    """Steps until the directions of a matrix are found anew; twice as many each time that they have settled."""
    settled: Annotated[float, Meta(ge=0, le=1)] = 0.4
    """Directions have settled when the last five first ones have this cosine with the one before, on average."""
    bits: Literal[4, 8] = 8
    """Bits of a number of the projection; the method's own code uses 4."""
    scale: Annotated[float, Meta(gt=0)] = 0.25
    """Strength of the projected updates."""
    weight_decay: Decay = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Memory = 0.9
    """Memory of the gradient."""
    beta2: Memory = 0.95
    """Memory of its square."""
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        from postmill.stages.train.low_rank_optimizers import LowRankAdamW
        from postmill.stages.train.q_galore import q_galore

        options = {"rank": self.rank, "gap": self.gap, "scale": self.scale, "settled": self.settled, "bits": self.bits}
        groups = low_rank_groups(parameters, self.weight_decay, options)
        return LowRankAdamW(groups, q_galore, lr=lr, betas=(self.beta1, self.beta2), eps=self.eps)


class Apollo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="apollo"):
    """SGD, channels scaled as AdamW does behind a random projection (<https://arxiv.org/abs/2412.05270>).

    Rank 1 with scale 128 is APOLLO-Mini.
    """

    shards: ClassVar[bool] = False

    rank: Annotated[int, Meta(ge=1)] = 128
    """Rank of the projection; matrices that are not larger are left to AdamW."""
    gap: Annotated[int, Meta(ge=1)] = 200
    """Steps until another projection is drawn."""
    scale: Annotated[float, Meta(gt=0)] = 1.0
    """Strength of the projected updates."""
    weight_decay: Decay = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Memory = 0.9
    """Memory of the gradient."""
    beta2: Memory = 0.95
    """Memory of its square."""
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, parameters: "dict[str, torch.Tensor]", lr: float) -> "torch.optim.Optimizer":
        """Over `parameters`, by name."""
        from postmill.stages.train.low_rank_optimizers import LowRankAdamW, apollo

        options = {"rank": self.rank, "gap": self.gap, "scale": self.scale}
        groups = low_rank_groups(parameters, self.weight_decay, options, one_each=True)
        return LowRankAdamW(groups, apollo, lr=lr, betas=(self.beta1, self.beta2), eps=self.eps)


def is_inner_matrix(name: str, parameter: "torch.Tensor") -> bool:
    """Whether a parameter is a matrix of a layer, and neither embedding nor head."""
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


def low_rank_groups(
    parameters: "dict[str, torch.Tensor]", weight_decay: float, options: dict[str, Any], *, one_each: bool = False
) -> list[dict[str, Any]]:
    """Groups of layers' matrices larger than `rank`, with `options`, and of the rest. one_each: each matrix is a group
    of its own, with a seed."""
    low = {n: p for n, p in parameters.items() if is_inner_matrix(n, p) and min(p.shape) > options["rank"]}
    groups = decay_groups({n: p for n, p in parameters.items() if n not in low}, weight_decay)
    if one_each:
        return groups + [
            {"params": [p], "weight_decay": weight_decay, "seed": seed} | options for seed, p in enumerate(low.values())
        ]
    return groups + ([{"params": list(low.values()), "weight_decay": weight_decay} | options] if low else [])


def decay_groups(parameters: "dict[str, torch.Tensor]", weight_decay: float) -> list[dict[str, Any]]:
    """Groups for torch's optimizers: norms and biases (fewer than two dimensions) do not decay."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


OPTIMIZERS = Choice(
    group="postmill.optimizers",
    table={
        "adamw": "postmill.stages.train.optimizers:AdamW",
        "sgd": "postmill.stages.train.optimizers:Sgd",
        "lion": "postmill.stages.train.optimizers:Lion",
        "adafactor": "postmill.stages.train.optimizers:Adafactor",
        "muon": "postmill.stages.train.optimizers:Muon",
        "adamw-8bit": "postmill.stages.train.optimizers:AdamW8bit",
        "schedule-free": "postmill.stages.train.optimizers:ScheduleFree",
        "galore": "postmill.stages.train.optimizers:GaLore",
        "q-galore": "postmill.stages.train.optimizers:QGaLore",
        "apollo": "postmill.stages.train.optimizers:Apollo",
    },
)
"""How gradients become updates."""
