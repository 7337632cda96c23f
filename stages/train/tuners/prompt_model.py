"""Prompt methods through peft: how they are attached, saved and found again."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError
from postmill.io.model_folder import ADAPTER_WEIGHTS
from postmill.stages.shared import attention
from postmill.stages.shared.hf import quiet_libraries
from postmill.stages.train.tuners.interface import STATE, Start, Tuner
from postmill.stages.train.tuners.peft_model import MakeConfig, adapter_tensors, attach, save_adapter


def prompt_tuner(name: str, make_config: MakeConfig) -> Tuner:
    """The tuner called `name`, from what makes peft's config for a base model."""

    def start(given: Start) -> Any:
        if given.head.kind != "lm":
            raise ConfigError(f"--tuner {name}: only losses of tokens fit it; use --tuner lora", USAGE)
        with quiet_libraries():
            importlib.import_module("peft")
        base = given.load(given.base, given.dtype)
        _check(name, base)
        torch.manual_seed(given.seed)
        net = attach(name, base, make_config(base, given), None)
        if given.checkpoint:
            _restore(name, _encoder(net), given)
        return net

    return Tuner(start, adapter_tensors, save_adapter, packages=("peft",), state=lambda net: _encoder(net).state_dict())


def _check(name: str, base: Any) -> None:
    """Raise ConfigError (2) for a base that cannot have vectors before its rows here."""
    if getattr(base.config, "is_encoder_decoder", False) or base.config.get_text_config() is not base.config:
        raise ConfigError(
            f"--tuner {name}: {base.config.model_type} models take no prompts here; use --tuner lora", USAGE
        )
    if name == "prefix-tuning" and base.config._attn_implementation != attention.ROWS:
        raise ConfigError(f"--tuner {name}: pass --attention per-row, other kernels see no keys before a row", USAGE)


def _encoder(net: Any) -> Any:
    return net.prompt_encoder["default"]


def _restore(name: str, encoder: Any, given: Start) -> None:
    """Put back what was trained. Raises ConfigError (2) for a result without the network that made its vectors."""
    assert given.checkpoint is not None
    if (given.checkpoint / STATE).is_file():
        encoder.load_state_dict(load_file(given.checkpoint / STATE))
        return
    if name == "p-tuning":
        raise ConfigError(
            f"--from {given.checkpoint}: holds vectors, not the network that makes them; use --tuner prompt-tuning",
            USAGE,
        )
    found: Mapping[str, Tensor] = load_file(given.checkpoint / ADAPTER_WEIGHTS)
    encoder.embedding.weight.data.copy_(found["prompt_embeddings"])
