"""AdaLoRA through peft: its allocator is called after each update, and its memory of importance is in checkpoints.

Adapters are saved at the rank they began with, pruned ranks being zero: that is what training computed, to the bit.
peft's shortened form would be scaled by another rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from postmill.stages.train.tuners.adalora import Adalora
from postmill.stages.train.tuners.interface import STATE, Start, Tuner
from postmill.stages.train.tuners.peft_model import adapter_tensors, peft_tuner, save_adapter
from postmill.stages.train.tuners.targets import find_targets, of_head, whole_modules

_MEMORIES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_PATTERN = "rank_pattern"


def adalora_tuner(options: Adalora) -> Tuner:
    """The tuner of `Adalora`."""

    def make_config(base: Any, given: Start) -> Any:
        from peft import AdaLoraConfig

        first = int(options.wait * given.num_steps)
        last = int(options.settle * given.num_steps)
        return AdaLoraConfig(
            init_r=options.rank,
            target_r=options.target_rank,
            lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft scales by a float as well
            lora_dropout=options.dropout,
            tinit=first,
            tfinal=max(1, last),
            deltaT=options.every,
            total_step=max(given.num_steps, first + max(1, last) + 1),
            orth_reg_weight=options.orthogonality or 1.0,  # ours is added by `add_orthogonality`
            target_modules=find_targets(base, options.targets, "adalora"),
            modules_to_save=whole_modules(base, options.modules_to_save, "adalora") or None,
            **of_head(given.head, base),
        )

    plain = peft_tuner("adalora", make_config)

    def start(given: Start) -> Any:
        model = plain.start(given)
        if given.checkpoint and (given.checkpoint / STATE).is_file():
            _restore(model, load_file(given.checkpoint / STATE))
        return model

    def before_update(model: Any) -> None:
        if options.orthogonality:
            add_orthogonality(model, options.orthogonality)

    def after_update(model: Any, number: int) -> None:
        with torch.no_grad():
            model.base_model.update_and_allocate(number)

    return Tuner(
        start,
        _tensors,
        _save,
        packages=("peft",),
        before_update=before_update,
        after_update=after_update,
        state=_state,
    )


def add_orthogonality(model: Any, strength: float) -> None:
    """Add the gradient of `strength` times the mean over factors P of the Frobenius norm of `P P^T - I`."""
    factors = [(name, p) for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]
    for name, p in factors:
        leaf = p.detach().requires_grad_()
        gram = leaf @ leaf.T if ".lora_A." in name else leaf.T @ leaf
        term = torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=p.device))
        (gradient,) = torch.autograd.grad(term, leaf)
        gradient = gradient * (strength / len(factors))
        p.grad = gradient if p.grad is None else p.grad + gradient


def _tensors(model: Any) -> Mapping[str, Tensor]:
    config = model.peft_config["default"]
    pattern, config.rank_pattern = config.rank_pattern, None
    found = adapter_tensors(model)
    config.rank_pattern = pattern
    return found


def _save(model: Any, tensors: Mapping[str, Tensor], folder: Path, base: str) -> None:
    save_adapter(model, tensors, folder, base, {_PATTERN: None})


def _state(model: Any) -> Mapping[str, Tensor]:
    """What the allocator remembers of each parameter, and which ranks it left."""
    allocator = model.base_model.rankallocator
    found = {
        f"{memory}/{name}": t.detach().cpu() for memory in _MEMORIES for name, t in getattr(allocator, memory).items()
    }
    pattern = model.peft_config["default"].rank_pattern or {}
    return found | {f"{_PATTERN}/{name}": torch.tensor(kept) for name, kept in pattern.items()}


def _restore(model: Any, tensors: Mapping[str, Tensor]) -> None:
    allocator, pattern = model.base_model.rankallocator, {}
    for path, tensor in tensors.items():
        memory, _, name = path.partition("/")
        if memory == _PATTERN:
            pattern[name] = tensor.tolist()
        else:
            getattr(allocator, memory)[name] = tensor
    model.peft_config["default"].rank_pattern = pattern or None
