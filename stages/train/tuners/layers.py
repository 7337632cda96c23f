"""The layers of a decoder, whatever its family calls them."""

from typing import Any

from torch import nn

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.hf import decoder_of


def layers_of(model: Any) -> nn.ModuleList:
    """The list of decoder layers. Raises ConfigError (2) for a model that has no such list."""
    decoder = decoder_of(model)
    found = next((child for child in decoder.children() if isinstance(child, nn.ModuleList)), None)
    if found is None:
        raise ConfigError(f"{type(model).__name__}: has no list of layers; choose another --tuner", USAGE)
    return found
