"""First weights of LoRA, and how an adapter that changed its base is saved as one that did not.

PiSSA (<https://arxiv.org/abs/2404.02948>), OLoRA (<https://arxiv.org/abs/2406.01775>), CorDA
(<https://arxiv.org/abs/2406.05223>) and LoRA-GA (<https://arxiv.org/abs/2407.05000>) begin with factors A0, B0 that are
not zero, and take `s B0 A0` out of the weight. What was learned, `s (B A - B0 A0)`, is a plain adapter of twice the
rank on the stored base: that is saved. EVA (<https://arxiv.org/abs/2410.07170>) only chooses A. LoftQ
(<https://arxiv.org/abs/2310.08659>) begins with what quantizing lost, so its adapter belongs to the quantized base.
"""

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.io.model_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from postmill.io.safetensors_file import open_weights
from postmill.stages.progress import Progress
from postmill.stages.shared import attention
from postmill.stages.shared.hf import need, quiet_libraries
from postmill.stages.shared.quantized_weights import read_tensor
from postmill.stages.train.tuners.frozen import say_frozen
from postmill.stages.train.tuners.interface import Start, Tuner
from postmill.stages.train.tuners.lora import Lora
from postmill.stages.train.tuners.peft_model import (
    MakeConfig,
    adapter_tensors,
    attach,
    load_adapter,
    save_adapter,
)
from postmill.stages.train.tuners.targets import split

BASE_CHANGING = ("pissa", "olora", "corda", "lora-ga")
_PEFT_NAMES = {"default": True, "lora-ga": "lora_ga"}
_A, _B = ".lora_A.weight", ".lora_B.weight"


def lora_tuner(options: Lora, make_config: MakeConfig) -> Tuner:
    """The tuner of `Lora`."""
    first: dict[str, Tensor] = {}  # A0 and B0 by their names in the file

    def start(given: Start) -> Any:
        model = begin(given)
        if split(options.targets) == ["all-linear"]:
            say_frozen(model)
        return model

    def begin(given: Start) -> Any:
        with quiet_libraries():
            importlib.import_module("peft")
        base = given.load(given.base, given.dtype)
        if options.shifted_group:
            _shift(base, options.shifted_group)
        torch.manual_seed(given.seed)
        config = make_config(base, given)
        if options.init not in BASE_CHANGING:
            return _plain(options, base, config, given)
        if given.checkpoint:
            if load_json(given.checkpoint / ADAPTER_CONFIG).get("r") != 2 * options.rank:
                raise ConfigError(
                    f"{given.checkpoint}: has weights already, so --lora.init {options.init} has nothing to do; leave"
                    " it out",
                    USAGE,
                )
            model = attach("lora", base, config, None)
            now, before = halves(load_file(given.checkpoint / ADAPTER_WEIGHTS))
            take_out(model, before)
            load_adapter(model, now)
        else:
            model = _base_changing(options, base, config, given)
            before = {name: t.detach().clone() for name, t in adapter_tensors(model).items() if _is_factor(name)}
        first.update(before)
        return model

    def tensors(model: Any) -> Mapping[str, Tensor]:
        return doubled(adapter_tensors(model), first) if first else adapter_tensors(model)

    def save(model: Any, whole: Mapping[str, Tensor], folder: Path, base: str) -> None:
        rank, alpha = options.rank, options.alpha
        # peft reads it as a note, and does nothing with it
        note = {"loftq_config": {"loftq_bits": 4, "loftq_iter": 1}} if options.init == "loftq" else {}
        if first:
            # the scale stays: alpha / rank, or alpha / sqrt(rank)
            rank, alpha = 2 * rank, alpha * (math.sqrt(2) if options.rslora else 2)
        save_adapter(model, whole, folder, base, {"r": rank, "lora_alpha": alpha} | note)

    def lr_factor(name: str) -> float:
        is_second = ".lora_B." in name or ".lora_embedding_B." in name
        return options.lr_ratio if is_second else 1.0

    def put(model: Any, folder: Path) -> None:
        load_adapter(model, load_file(folder / ADAPTER_WEIGHTS))

    # a base that was changed belongs to its first factors
    again = None if options.init in BASE_CHANGING else put
    return Tuner(start, tensors, save, put=again, packages=("peft",), lr_factor=lr_factor)


def _shift(base: Any, group: int) -> None:
    """Attend in groups while training. Raises ConfigError (2) for a kernel that cannot."""
    if base.config._attn_implementation != attention.ROWS:
        raise ConfigError("--lora.shifted-group: pass --attention per-row, other kernels attend to whole rows", USAGE)
    base.set_attn_implementation(attention.shifted(group))


def _plain(options: Lora, base: Any, config: Any, given: Start) -> Any:
    """An adapter that begins at zero, or beside a base that stays."""
    if options.init in ("gaussian", "orthogonal") and not given.checkpoint:
        config.init_lora_weights = options.init
    if options.init != "eva" or given.checkpoint:
        model = attach("lora", base, config, given.checkpoint)
        model.peft_config["default"].init_lora_weights = True
        if options.init == "loftq" and not given.checkpoint:
            take_up_loss(model, given.base, given.dtype)
        return model
    from peft import EvaConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    look = given.loss
    assert look is not None
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=1.0)
    with quiet_libraries():
        found = get_eva_state_dict(
            base,
            [torch.tensor([number]) for number in range(options.init_bins)],
            config,
            forward_fn=lambda net, number: look(net, int(number)),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=lambda inputs, _, __: inputs[0].reshape(-1, inputs[0].shape[-1]),
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    config.init_lora_weights, config.eva_config = True, None
    model = attach("lora", base, config, None)
    for name, module in model.get_base_model().named_modules():
        if name in found:
            module.lora_A["default"].weight.data.copy_(found[name])
    return model


def _base_changing(options: Lora, base: Any, config: Any, given: Start) -> Any:
    """A new adapter of peft's own making, which has taken `s B0 A0` out of the base."""
    look = given.loss
    assert look is not None

    def run() -> None:
        with torch.no_grad():
            for number in range(options.init_bins):
                look(base, number)

    def run_backward() -> None:
        for number in range(options.init_bins):
            look(base, number).backward()  # type: ignore[no-untyped-call]

    config.init_lora_weights = _PEFT_NAMES.get(options.init, options.init)
    with quiet_libraries():
        if options.init == "corda":
            need("attr", remedy="pip install attrs, or choose another --lora.init")  # peft imports it for this alone
            from peft.tuners.lora.config import CordaConfig
            from peft.tuners.lora.corda import preprocess_corda

            config.corda_config = CordaConfig(corda_method="kpm")
            preprocess_corda(base, config, run)
        if options.init == "lora-ga":
            from peft import LoraGAConfig
            from peft.tuners.lora.loraga import preprocess_loraga

            config.lora_ga_config = LoraGAConfig()
            preprocess_loraga(base, config, run_backward)
    model = attach("lora", base, config, None)
    made = model.peft_config["default"]
    made.init_lora_weights, made.corda_config, made.lora_ga_config = True, None, None
    return model


def _is_factor(name: str) -> bool:
    return name.endswith((_A, _B))


def doubled(now: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`[A; A0]` and `[B, -B0]`, whose product is `B A - B0 A0`; other tensors as they are."""
    found: dict[str, Tensor] = {}
    for name, tensor in now.items():
        if name.endswith(_A):
            found[name] = torch.cat([tensor.detach(), first[name].to(tensor)])
        elif name.endswith(_B):
            found[name] = torch.cat([tensor.detach(), -first[name].to(tensor)], dim=1)
        else:
            found[name] = tensor
    return found


def halves(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `doubled` was given."""
    now, first = dict(tensors), {}
    for name, tensor in tensors.items():
        if name.endswith(_A):
            now[name], first[name] = (part.contiguous() for part in tensor.chunk(2))
        elif name.endswith(_B):
            left, right = tensor.chunk(2, dim=1)
            now[name], first[name] = left.contiguous(), -right.contiguous()
    return now, first


def take_out(model: Any, first: Mapping[str, Tensor]) -> None:
    """Take `s B0 A0` out of the base, with the arithmetic of peft's first time, to the bit."""
    for name, module in model.named_modules():
        if f"{name}{_A}" not in first:
            continue
        weight = module.get_base_layer().weight
        flipped = module.fan_in_fan_out
        wide = weight.data.float()
        change = module.scaling["default"] * first[f"{name}{_B}"] @ first[f"{name}{_A}"]
        weight.data = (wide - (change.T if flipped else change)).to(weight.dtype)


def take_up_loss(model: Any, base: Path, dtype: torch.dtype) -> None:
    """Begin with `s B A`, the best of its rank for what quantizing took from each weight: LoftQ's first iteration.

    base: folder with the weights as they were. dtype: what the layers compute in.
    Raises ConfigError (2) for a layer whose weight is not found there.
    """
    with open_weights(base) as weights, torch.no_grad():
        for name, module in model.get_base_model().named_modules():
            if not hasattr(module, "lora_A"):
                continue
            Progress.beat()
            layer = module.get_base_layer()
            if f"{name}.weight" not in weights.where:
                raise ConfigError(f"--lora.init loftq: {base} has no {name}.weight; choose another --lora.init", USAGE)
            # whatever its codes are: what a layer makes of unit vectors is its weight
            unit = torch.eye(layer.in_features, dtype=dtype)
            kept = layer(unit).float().T
            if layer.bias is not None:
                kept -= layer.bias.float()[:, None]
            lost = read_tensor(weights, f"{name}.weight").float() - kept
            u, s, vh = torch.linalg.svd(lost, full_matrices=False)
            rank, root = module.r["default"], s.sqrt()
            module.lora_A["default"].weight.copy_(root[:rank, None] * vh[:rank])
            module.lora_B["default"].weight.copy_(u[:, :rank] * root[:rank] / module.scaling["default"])
