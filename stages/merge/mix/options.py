"""Ways to make one model of several, as they are chosen: `--method ties --ties.density 0.5`.

W_i are the models' weights, B the base's, d_i = W_i - B, w_i the weights given. A number may differ between models
(`0.7,0.3`) and over the depth (`0:0.5:1`); `settings.py` says how. Names and defaults are mergekit's. What a method
does is in `methods.py`.
"""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from postmill.stages.merge.mix.slices import parse_slice
from postmill.stages.spec import Choice

Seed = Annotated[int, Meta(ge=0, lt=2**62)]
Rescale = Literal["none", "l1", "density"]
ANY = 10_000


class Linear(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="linear"):
    """The mean of the weights: `sum w W / sum w` (model soup). Source: <https://arxiv.org/abs/2203.05482>."""

    takes: ClassVar[tuple[int, int]] = (2, ANY)
    needs_base: ClassVar[bool] = False
    weight: str = "1"
    """Weight of each model, in their order: 0.7,0.3; anchors from the first layer to the last: 1:0,0:1."""
    normalize: bool = True
    """Divide by the sum of the weights."""


class Ema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ema"):
    """The mean of checkpoints, weighed `beta^k`, k counted back from the last. Source: <https://arxiv.org/abs/1803.05407>."""

    takes: ClassVar[tuple[int, int]] = (2, ANY)
    needs_base: ClassVar[bool] = False
    beta: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    """Weight of each model relative to the next one; give checkpoints from the oldest to the newest."""


class Slerp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="slerp"):
    """On the arc from the first model to the second. Source: <https://dl.acm.org/doi/10.1145/325165.325242>."""

    takes: ClassVar[tuple[int, int]] = (2, 2)
    needs_base: ClassVar[bool] = False
    t: str = "0.5"
    """Place between the first model (0) and the second (1); anchors from the first layer to the last: 0:0.5:1."""


class TaskArithmetic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="task_arithmetic"):
    """`B + lambda sum w d`. Source: <https://arxiv.org/abs/2212.04089>."""

    takes: ClassVar[tuple[int, int]] = (1, ANY)
    needs_base: ClassVar[bool] = True
    weight: str = "1"
    """Weight of each model's change, in their order: 0.7,0.3; anchors over the layers: 1:0,0:1."""
    normalize: bool = False
    """Divide by the sum of the weights."""
    lambda_: float = 1.0
    """Multiply the summed change by this."""


class Ties(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ties"):
    """The largest changes, of those with the elected sign. Source: TIES, <https://arxiv.org/abs/2306.01708>."""

    takes: ClassVar[tuple[int, int]] = (1, ANY)
    needs_base: ClassVar[bool] = True
    weight: str = "1"
    """Weight of each model's change, in their order: 0.7,0.3; anchors over the layers: 1:0,0:1."""
    density: str = "1"
    """Share of each change that is kept: its largest elements."""
    normalize: bool = True
    """Divide by the weights that count."""
    rescale: Rescale = "none"
    """Scale what is kept of a change: to its sum of magnitudes (l1), or by 1 / density."""
    lambda_: float = 1.0
    """Multiply the summed change by this."""


class DareLinear(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dare_linear"):
    """Random elements of the changes, summed. Source: DARE, <https://arxiv.org/abs/2311.03099>."""

    takes: ClassVar[tuple[int, int]] = (1, ANY)
    needs_base: ClassVar[bool] = True
    weight: str = "1"
    """Weight of each model's change, in their order: 0.7,0.3; anchors over the layers: 1:0,0:1."""
    density: str = "1"
    """Probability of each element of a change to be kept."""
    normalize: bool = False
    """Divide by the sum of the weights."""
    rescale: Rescale = "l1"
    """Scale what is kept of a change: to its sum of magnitudes (l1, as mergekit), or by 1 / density (as the paper)."""
    lambda_: float = 1.0
    """Multiply the summed change by this."""
    seed: Seed = 0
    """Decides which elements are kept."""


class DareTies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dare_ties"):
    """Random elements of the changes, of those with the elected sign. Source: <https://arxiv.org/abs/2311.03099>."""

    takes: ClassVar[tuple[int, int]] = (1, ANY)
    needs_base: ClassVar[bool] = True
    weight: str = "1"
    """Weight of each model's change, in their order: 0.7,0.3; anchors over the layers: 1:0,0:1."""
    density: str = "1"
    """Probability of each element of a change to be kept."""
    normalize: bool = False
    """Divide by the weights that count."""
    rescale: Rescale = "l1"
    """Scale what is kept of a change: to its sum of magnitudes (l1, as mergekit), or by 1 / density (as the paper)."""
    lambda_: float = 1.0
    """Multiply the summed change by this."""
    seed: Seed = 0
    """Decides which elements are kept."""


class Della(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="della"):
    """Random elements, larger ones more likely, elected by sign. Source: DELLA, <https://arxiv.org/abs/2406.11617>."""

    takes: ClassVar[tuple[int, int]] = (1, ANY)
    needs_base: ClassVar[bool] = True
    weight: str = "1"
    """Weight of each model's change, in their order: 0.7,0.3; anchors over the layers: 1:0,0:1."""
    density: str = "1"
    """Mean probability of an element of a change to be kept."""
    epsilon: str = "0.15"
    """How far the probability of the smallest and the largest element of a row lies from the mean."""
    normalize: bool = True
    """Divide by the weights that count."""
    rescale: Rescale = "l1"
    """Scale what is kept of a change: to its sum of magnitudes (l1, as mergekit), or by 1 / density."""
    lambda_: float = 1.0
    """Multiply the summed change by this."""
    seed: Seed = 0
    """Decides which elements are kept."""


class DellaLinear(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="della_linear"):
    """Random elements of the changes, larger ones more likely, summed. Source: <https://arxiv.org/abs/2406.11617>."""

    takes: ClassVar[tuple[int, int]] = (1, ANY)
    needs_base: ClassVar[bool] = True
    weight: str = "1"
    """Weight of each model's change, in their order: 0.7,0.3; anchors over the layers: 1:0,0:1."""
    density: str = "1"
    """Mean probability of an element of a change to be kept."""
    epsilon: str = "0.15"
    """How far the probability of the smallest and the largest element of a row lies from the mean."""
    normalize: bool = False
    """Divide by the sum of the weights."""
    rescale: Rescale = "l1"
    """Scale what is kept of a change: to its sum of magnitudes (l1, as mergekit), or by 1 / density."""
    lambda_: float = 1.0
    """Multiply the summed change by this."""
    seed: Seed = 0
    """Decides which elements are kept."""


class Breadcrumbs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="breadcrumbs"):
    """Changes without their smallest elements and their outliers. Source: <https://arxiv.org/abs/2312.06795>."""

    takes: ClassVar[tuple[int, int]] = (1, ANY)
    needs_base: ClassVar[bool] = True
    weight: str = "1"
    """Weight of each model's change, in their order: 0.7,0.3; anchors over the layers: 1:0,0:1."""
    density: str = "1"
    """Share of each change that is kept."""
    gamma: str = "0.01"
    """Share of the largest elements that is left out first."""
    normalize: bool = False
    """Divide by the sum of the weights."""
    rescale: Rescale = "none"
    """Scale what is kept of a change: to its sum of magnitudes (l1), or by 1 / density."""
    lambda_: float = 1.0
    """Multiply the summed change by this."""


class BreadcrumbsTies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="breadcrumbs_ties"):
    """Breadcrumbs, of those with the elected sign. Source: <https://arxiv.org/abs/2312.06795>."""

    takes: ClassVar[tuple[int, int]] = (1, ANY)
    needs_base: ClassVar[bool] = True
    weight: str = "1"
    """Weight of each model's change, in their order: 0.7,0.3; anchors over the layers: 1:0,0:1."""
    density: str = "1"
    """Share of each change that is kept."""
    gamma: str = "0.01"
    """Share of the largest elements that is left out first."""
    normalize: bool = False
    """Divide by the weights that count."""
    rescale: Rescale = "none"
    """Scale what is kept of a change: to its sum of magnitudes (l1), or by 1 / density."""
    lambda_: float = 1.0
    """Multiply the summed change by this."""


class ModelStock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="model_stock"):
    """Between the base and the mean, by the angle between the changes. Source: <https://arxiv.org/abs/2403.19522>."""

    takes: ClassVar[tuple[int, int]] = (2, ANY)
    needs_base: ClassVar[bool] = True


class Passthrough(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="passthrough"):
    """One model as it is, or times a number; with layers, layers of several models in a row."""

    takes: ClassVar[tuple[int, int]] = (1, ANY)
    needs_base: ClassVar[bool] = False
    scale_by: str = "1"
    """Multiply weights by this; mostly for some tensors, with --rule."""
    layers: list[str] = []
    """Layers of the result, first to last, each as model:from-to, from 0 and `to` not taken: 0:0-16, then 1:8-24."""

    def __post_init__(self) -> None:
        for text in self.layers:
            parse_slice(text)


MIXES = Choice(
    group="postmill.mixes",
    table={
        "linear": "postmill.stages.merge.mix.options:Linear",
        "ema": "postmill.stages.merge.mix.options:Ema",
        "slerp": "postmill.stages.merge.mix.options:Slerp",
        "task_arithmetic": "postmill.stages.merge.mix.options:TaskArithmetic",
        "ties": "postmill.stages.merge.mix.options:Ties",
        "dare_linear": "postmill.stages.merge.mix.options:DareLinear",
        "dare_ties": "postmill.stages.merge.mix.options:DareTies",
        "della": "postmill.stages.merge.mix.options:Della",
        "della_linear": "postmill.stages.merge.mix.options:DellaLinear",
        "breadcrumbs": "postmill.stages.merge.mix.options:Breadcrumbs",
        "breadcrumbs_ties": "postmill.stages.merge.mix.options:BreadcrumbsTies",
        "model_stock": "postmill.stages.merge.mix.options:ModelStock",
        "passthrough": "postmill.stages.merge.mix.options:Passthrough",
    },
)
