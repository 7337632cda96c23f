"""Tensor parallelism: each rank of a group holds a slice of every matrix, and all compute the same tokens.

A column layer (`q_proj`, `up_proj`) is cut by its outputs, the row layer after it (`o_proj`, `down_proj`) by its
inputs; the sum of the row layer's parts is the only thing sent, twice a block. Embedding and head are cut by the
vocabulary. Which layer is what is transformers' plan for the family (`tp_plan`), and so are the forward passes. Source:
Megatron-LM, <https://arxiv.org/abs/1909.08053>.

Two things are not as transformers does them. Norms of single heads see the heads of this rank only, so their gradients
are parts of a sum; transformers sums the accumulated gradient in every micro-batch, which counts the first ones again.
Here they are summed once a step, by the caller. And adapters, which no plan names, are cut as the layer they belong to.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from postmill.io.errors import USAGE, ConfigError

_SUMMED = "replicated_with_grad_allreduce"
_COLUMN = ("colwise", "colwise_gather_output", "colwise_rep")
_ROW = ("rowwise", "rowwise_rep", "rowwise_split_input")
_EXPERTS = ("packed_colwise", "packed_rowwise", "moe_tp_experts")
_KNOWN = (*_COLUMN, *_ROW, *_EXPERTS, _SUMMED, "embedding_rowwise", "replicate")
_WRAPPERS = re.compile(r"\.(base_layer|original_module|modules_to_save\.default)\b")


def check(model: Any, size: int) -> dict[str, str]:
    """The model's plan. Raises ConfigError (2) if it has none that is known to be exact, or heads do not divide."""
    plan: dict[str, str] = dict(model.tp_plan or {})
    text = model.config.get_text_config()
    family = model.config.model_type
    odd = sorted(set(plan.values()) - set(_KNOWN))
    if not plan or odd:
        why = f"cuts layers in a way that was not tested here ({', '.join(odd)})" if odd else "says nothing of it"
        raise ConfigError(f"--tp {size}: transformers' plan for {family} models {why}; use --shard fsdp", USAGE)
    for what in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, what, None)
        if heads is not None and heads % size:
            raise ConfigError(f"--tp {size}: {what} is {heads}, which {size} does not divide", USAGE)
    return plan


def split(model: Any, mesh: DeviceMesh) -> list[nn.Parameter]:
    """Cut a transformers model, adapters injected or not, over the ranks of the 1-D `mesh`, in place.

    Returns the trained parameters that are whole on every rank and whose gradients must be summed over `mesh` once a
    step. Raises ConfigError (2) for what cannot be cut.
    """
    plan = check(model, mesh.size())
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    summed: list[nn.Parameter] = []
    for name, module in list(model.named_modules()):
        own = generic_name(name)
        style = plan.get(own)
        if hasattr(module, "lora_A") and style is not None:
            _split_adapter(name, module, style, mesh)
        elif not (hasattr(module, "base_layer") or hasattr(module, "original_module")):
            summed += _split_module(module, own, style, plan, mesh)
    if tied:
        head.weight = embedding.weight
    return [parameter for parameter in summed if parameter.requires_grad]


def generic_name(name: str) -> str:
    """A module's name as plans spell it: numbers are `*`, and peft's wrappers are not there."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", _WRAPPERS.sub("", name))


def _split_module(
    module: nn.Module, own: str, style: str | None, plan: dict[str, str], mesh: DeviceMesh
) -> list[nn.Parameter]:
    from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES

    if style == _SUMMED:
        return list(module.parameters(recurse=False))
    for name, _ in list(module.named_parameters(recurse=False)):
        of_parameter = plan.get(f"{own}.{name}", style)
        if of_parameter is not None:
            kind = ALL_PARALLEL_STYLES[of_parameter]
            kind.validate_param(module, name, mesh, parameter_name=f"{own}.{name}")
            kind.shard_param(module, name, mesh)
            own_storage(module, name)
    if style is not None:
        ALL_PARALLEL_STYLES[style].install_forward(module, mesh)
    return []


def _split_adapter(name: str, module: Any, style: str, mesh: DeviceMesh) -> None:
    """B of a column layer is cut as the layer's outputs are, A of a row layer as its inputs."""
    if getattr(module, "lora_magnitude_vector", None):
        raise ConfigError(
            "--lora.dora: its norms need whole matrices, which no rank has under --tp; leave it out", USAGE
        )
    if style not in _COLUMN + _ROW:
        raise ConfigError(f"--lora.targets: {name} takes no adapter under --tp; choose linear layers", USAGE)
    for adapter in (module.lora_B if style in _COLUMN else module.lora_A).values():
        _split_module(adapter, "", style, {}, mesh)


def own_storage(module: nn.Module, name: str) -> nn.Parameter:
    """Let a slice own its memory: one that is a view keeps the whole matrix alive. Returns what is there now."""
    from torch.distributed.tensor import DTensor

    parameter = module._parameters[name]
    assert parameter is not None
    if not isinstance(parameter, DTensor):
        return parameter
    local: Tensor = parameter.to_local().detach()
    if local.untyped_storage().nbytes() <= local.nbytes:
        return parameter
    own = DTensor.from_local(
        local.clone(memory_format=torch.contiguous_format),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    found = nn.Parameter(own, requires_grad=parameter.requires_grad)
    module._parameters[name] = found
    return found
