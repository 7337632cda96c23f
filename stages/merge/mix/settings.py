"""Numbers that depend on the model, the layer and the tensor: `0.7,0.3`, `0:0.5:1`, and rules for some tensors.

A comma separates models, in their order; a colon separates anchors over the depth of the model, between which a
layer's value lies on a line (`0:0.5:1` is 0 in the first layer, 0.5 in the middle, 1 in the last). Tensors outside the
layers have the first anchor, as in mergekit.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

NAMES = ("weight", "density", "gamma", "epsilon", "t", "scale_by")
_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")


class Setting(msgspec.Struct, frozen=True):
    """One option's numbers. `anchors`: one list for each model, or one for all."""

    anchors: tuple[tuple[float, ...], ...]

    def at(self, model: int, depth: float) -> float:
        """The value for a model at a depth from 0 to 1."""
        points = self.anchors[model if len(self.anchors) > 1 else 0]
        place = depth * (len(points) - 1)
        left = min(int(place), len(points) - 1)
        right = min(left + 1, len(points) - 1)
        share = place - left
        return (1 - share) * points[left] + share * points[right]


class Rule(msgspec.Struct, frozen=True):
    """Settings for tensors whose name contains `part`."""

    part: str
    settings: dict[str, Setting]


Values = dict[str, list[float]]
"""What one tensor is mixed with: option -> a number for each model."""


def parse_setting(text: str) -> Setting:
    """Raises ValueError with the rule if it is not numbers, commas and colons."""
    try:
        return Setting(tuple(tuple(float(point) for point in one.split(":")) for one in text.split(",")))
    except ValueError:
        raise ValueError(
            f"{text!r}: expected numbers, `,` between models, `:` between layers (0.7,0.3 or 0:0.5:1)"
        ) from None


def parse_rule(text: str) -> Rule:
    """`mlp t=0.3 weight=1,0`: part of a name, then settings. Raises ValueError."""
    part, *words = text.split()
    settings = {}
    for word in words:
        name, is_pair, value = word.partition("=")
        if not is_pair or name not in NAMES:
            raise ValueError(f"rule {text!r}: {word!r} is none of {', '.join(f'{n}=...' for n in NAMES)}")
        settings[name] = parse_setting(value)
    if not settings:
        raise ValueError(f"rule {text!r}: sets nothing; write it like 'mlp t=0.3'")
    return Rule(part, settings)


def depth_of(tensor: str, num_layers: int) -> float:
    """0 for the first layer and for what is in no layer, 1 for the last."""
    match = _LAYER.search(f".{tensor}")
    return int(match[1]) / (num_layers - 1) if match and num_layers > 1 else 0.0


def settings_of(method: Any) -> dict[str, Setting]:
    """The options of a method that may differ between models, layers and tensors. Raises ValueError."""
    return {name: parse_setting(getattr(method, name)) for name in NAMES if hasattr(method, name)}


def values_of(
    tensor: str, num_models: int, depth: float, settings: dict[str, Setting], rules: Sequence[Rule]
) -> Values:
    """The numbers for one tensor: of the first rule that its name fits, else the options'."""
    own = next((rule.settings for rule in rules if rule.part in tensor), {})
    return {
        name: [own.get(name, setting).at(model, depth) for model in range(num_models)]
        for name, setting in settings.items()
    }
