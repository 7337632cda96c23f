"""Layers of several models in a row (mergekit's slices): which tensor of the result is which layer's of which model."""

import re
from typing import Any

import msgspec

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.stages.merge.base import Base
from postmill.stages.merge.mix.slices import Slice

_LAYER = re.compile(r"(?P<before>(?:.*\.)?(?:layers|h|blocks|block)\.)(?P<number>\d+)(?P<after>\..*)")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_SIZES = (
    "model_type",
    "hidden_size",
    "n_embd",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


def stack_layers(slices: list[Slice], bases: list[Base], places: list[str]) -> dict[str, tuple[int, str]]:
    """Tensor of the result -> (model, its tensor). The embedding is the first slice's model's, the end the last's.

    Raises ConfigError (2) for a slice that the models do not have, ArtifactError (78) for models of other sizes.
    """
    for one in slices:
        if one.model >= len(bases):
            raise ConfigError(f"--layers {one.model}:...: there are models 0 to {len(bases) - 1}", USAGE)
        if one.end > num_layers(bases[one.model]):
            have = num_layers(bases[one.model])
            raise ConfigError(f"--layers {one.model}:{one.first}-{one.end}: the model has {have} layers", USAGE)
    _check_sizes(slices, bases, places)
    first, last = slices[0].model, slices[-1].model
    plan: dict[str, tuple[int, str]] = {}
    for name in bases[first].weights.where:
        if name == bases[first].embedding:
            plan[name] = first, name
    number = 0
    for one in slices:
        for layer in range(one.first, one.end):
            for name in bases[one.model].weights.where:
                match = _LAYER.fullmatch(name)
                if match and int(match["number"]) == layer:
                    plan[f"{match['before']}{number}{match['after']}"] = one.model, name
            number += 1
    for name in bases[last].weights.where:
        if not _LAYER.fullmatch(name) and name != bases[last].embedding:
            plan[name] = last, name
    return plan


def num_layers(base: Base) -> int:
    """Layers of a model, as its config says."""
    inner = base.text_config or base.config
    return int(next((inner[name] for name in _COUNTS if inner.get(name)), 1))


def _check_sizes(slices: list[Slice], bases: list[Base], places: list[str]) -> None:
    used = sorted({one.model for one in slices})
    for name in _SIZES:
        values = {model: (bases[model].text_config or bases[model].config).get(name) for model in used}
        other = next((model for model in used if values[model] != values[used[0]]), None)
        if other is not None:
            raise ArtifactError(
                f"{places[other]}: {name} is {values[other]}, in {places[used[0]]} {values[used[0]]}; layers of models"
                " of other sizes do not fit together",
                MISMATCH,
            )


def stacked_config(slices: list[Slice], bases: list[Base]) -> dict[str, Any]:
    """The first slice's model's config with the new number of layers, and its lists of one item a layer made anew."""
    config: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(bases[slices[0].model].config))
    inner = config["text_config"] if bases[slices[0].model].text_config else config
    count = num_layers(bases[slices[0].model])
    for name, value in list(inner.items()):
        if name in _COUNTS and value == count:
            inner[name] = sum(one.end - one.first for one in slices)
        elif isinstance(value, list) and len(value) == count and count > 1:
            sources = [(bases[one.model].text_config or bases[one.model].config).get(name, value) for one in slices]
            inner[name] = [
                item for one, source in zip(slices, sources, strict=True) for item in source[one.first : one.end]
            ]
    return config
