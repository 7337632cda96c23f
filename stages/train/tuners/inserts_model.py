"""Inserts as a tuner: how they are put into the model, saved and found again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import write_json
from postmill.io.model_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from postmill.stages.shared.inserts import Kind, insert, insert_tensors, load_inserts
from postmill.stages.train.tuners.interface import Start, Tuner


def insert_tuner(config: Kind) -> Tuner:
    """The tuner that puts what `config` says between the layers."""

    def start(given: Start) -> Any:
        if given.head.kind not in ("lm", "pool", "answers"):
            raise ConfigError("--tuner: a classifier would not be trained; use --tuner lora", USAGE)
        model = given.load(given.base, given.dtype)
        torch.manual_seed(given.seed)
        insert(model, config)
        if given.checkpoint:
            load_inserts(model, given.checkpoint)
        return model

    def save(_: Any, tensors: Mapping[str, Tensor], folder: Path, base: str) -> None:
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(folder / ADAPTER_CONFIG, msgspec.to_builtins(config) | {"base_model_name_or_path": base})

    return Tuner(start, insert_tensors, save)
