"""How a run loads its model, in which dtypes, and what of it is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.stages.shared.hf import base_of, load_model
from postmill.stages.shared.soft_prompt import SoftPrompt
from postmill.stages.train.config import Train
from postmill.stages.train.liger import use_liger

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def loader(attention: str, cfg: Train) -> Callable[[Path, torch.dtype], Any]:
    """What loads the model in a folder in a dtype, on the CPU, with the head that the objective asks for: one that is
    not there is drawn from `cfg.seed`."""

    def load(path: Path, dtype: torch.dtype) -> Any:
        torch.manual_seed(cfg.seed)
        model = load_model(path, dtype, attention=attention, head=cfg.objective.needs.head, quant=cfg.compute.quant)
        if getattr(model, "pooler", None) is not None:
            model.pooler.requires_grad_(False)  # nobody reads what it gives, and ranks wait for every gradient
        if cfg.compute.liger:
            use_liger(model)
        return model

    return load


def compute_dtype(cfg: Train, device: torch.device) -> torch.dtype:
    """What matrices are multiplied in."""
    if cfg.compute.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return _DTYPES[cfg.compute.dtype]


def stored_dtype(cfg: Train, base: Path) -> torch.dtype:
    """What a full model is saved in."""
    if cfg.checkpoints.keep_state and cfg.compute.save_dtype == "auto":
        return torch.float32  # the next run goes on with what was trained, not with a rounding of it
    config = load_json(base / "config.json")
    name = (
        str(config.get("dtype") or config.get("torch_dtype"))
        if cfg.compute.save_dtype == "auto"
        else cfg.compute.save_dtype
    )
    return _DTYPES.get(name, torch.float32)


def causal_lm(model: Any) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    return base_of(model)


def soft_prompt(model: Any) -> SoftPrompt | None:
    """What a peft model of a prompt method trains; None of another."""
    return SoftPrompt(model) if hasattr(model, "prompt_encoder") else None


def trainable(model: Any) -> dict[str, Tensor]:
    """Parameters that are trained, by name, tied ones once. Raises ConfigError (2) if there are none."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ConfigError("0 trainable parameters; check what --tuner is told to train", USAGE)
    return found
