"""Starting with the weights of an earlier run (`--from`): whether they fit."""

from pathlib import Path
from typing import Any

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.model_folder import ADAPTER_CONFIG
from postmill.stages.protocol import Input
from postmill.stages.shared.base_model import check_base
from postmill.stages.train.config import Train

_SHAPES = {"rank": "r", "alpha": "lora_alpha", "dora": "use_dora", "rslora": "use_rslora"}
"""Options that are part of what an adapter computes, and what peft calls them."""


def check_start(cfg: Train, start: Input, model: Input) -> None:
    """Raise ConfigError (2) for weights of another kind or shape than the tuner's, ArtifactError (78) for those of
    another model."""
    assert start.path is not None
    if start.kind != cfg.tuner.makes:
        raise ConfigError(
            f"--from {start.path}: is {_a(start.kind)}, and this tuner trains {_a(cfg.tuner.makes)}; choose another"
            " --tuner",
            USAGE,
        )
    if start.kind != "adapter":
        return
    check_base(start, model)
    had = load_json(start.path / ADAPTER_CONFIG)
    for option, name in _SHAPES.items():
        wanted = getattr(cfg.tuner, option, None)
        if wanted is not None and name in had and had[name] != wanted:
            raise ConfigError(
                f"--from {start.path}: {option} {had[name]}, --{option} is {wanted}; give the same, or start anew",
                USAGE,
            )


def check_loaded(net_tensors: Any, start: Path) -> None:
    """Raise ArtifactError (78) if the adapter at `start` has other tensors than the one to train."""
    from safetensors import safe_open

    from postmill.io.model_folder import ADAPTER_WEIGHTS

    with safe_open(start / ADAPTER_WEIGHTS, "pt") as file:
        had = set(file.keys())
    differ = sorted(had ^ set(net_tensors))
    if differ:
        raise ArtifactError(
            f"{start}: {len(differ)} tensors are there or here only, like {differ[0]}; give the same --lora.targets",
            MISMATCH,
        )


def _a(kind: str) -> str:
    return "an adapter" if kind == "adapter" else f"a {kind}"
