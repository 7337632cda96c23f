"""Adapters through peft: one way to attach, save and load, whatever the method."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import write_json
from postmill.io.model_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from postmill.stages.shared.hf import quiet_libraries
from postmill.stages.train.tuners.interface import Start, Tuner
from postmill.stages.train.tuners.peft_config import NOTHING

MakeConfig = Callable[[Any, Start], Any]
"""peft's config for a base model."""


def peft_tuner(name: str, make_config: MakeConfig) -> Tuner:
    """The tuner called `name`, from what makes peft's config for a base model."""

    def start(given: Start) -> Any:
        with quiet_libraries():
            importlib.import_module("peft")
        base = given.load(given.base, given.dtype)
        torch.manual_seed(given.seed)
        return attach(name, base, make_config(base, given), given.checkpoint)

    return Tuner(start, adapter_tensors, save_adapter, packages=("peft",))


def attach(name: str, base: Any, config: Any, checkpoint: Path | None) -> Any:
    """A peft model: the base frozen in its own dtype, adapters in float32, new or of the checkpoint.

    Raises ConfigError (2) with what peft says of options that do not fit the model.
    """
    from peft import get_peft_model

    with quiet_libraries():
        try:
            model = get_peft_model(base, config)
        except (ValueError, TypeError, ImportError, AttributeError, NotImplementedError) as error:
            said = str(error).strip().split("\n", maxsplit=1)[0]
            raise ConfigError(f"--tuner {name}: peft says: {said}", USAGE) from error
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if checkpoint:
            load_adapter(model, load_file(checkpoint / ADAPTER_WEIGHTS))
    return model


def load_adapter(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put an adapter's tensors, as `adapter_tensors` names them, into a peft model of the same shape."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, dict(tensors))


def adapter_tensors(model: Any) -> Mapping[str, Tensor]:
    """What belongs to the adapter, by the names peft saves it under."""
    from peft import get_peft_model_state_dict

    found: Mapping[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=model.state_dict(keep_vars=True), save_embedding_layers=False
    )
    return found


def save_adapter(
    model: Any, tensors: Mapping[str, Tensor], folder: Path, base: str, changes: Mapping[str, Any] = NOTHING
) -> None:
    """One file of weights and peft's config, `changes` being what it says otherwise."""
    save_file(_apart(tensors), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    # peft holds names in sets, whose order changes from process to process
    plain: dict[str, Any] = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    plain |= changes
    alpha = plain.get("lora_alpha")
    if alpha is not None and alpha == int(alpha):
        plain["lora_alpha"] = int(alpha)  # some engines insist on an integer
    write_json(folder / ADAPTER_CONFIG, plain | {"base_model_name_or_path": base, "inference_mode": True})


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, each with memory of its own: peft writes what modules share once for each of them."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = (tensor.clone() if place in seen else tensor).contiguous()
        seen.add(place)
    return found
