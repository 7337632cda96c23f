"""Expert parallelism: the experts of each layer are dealt to the ranks of a group; tokens travel to them and back.

Ranks of the group compute bins of their own. In each layer a token and its gates are sorted by expert, sent to the rank
that has it, and the results come back: two exchanges forward, two backward, by transformers' plan and functions
(`ep_plan`). Source: GShard, <https://arxiv.org/abs/2006.16668>.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.train.parallel.tensor import generic_name, own_storage

_STYLES = {"grouped_gemm", "ep_dispatch_experts"}


def check(model: Any, size: int) -> dict[str, str]:
    """The model's plan. Raises ConfigError (2) if it has no experts that can be dealt to `size` ranks."""
    plan: dict[str, str] = dict(model.ep_plan or {})
    text = model.config.get_text_config()
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    if not plan or not set(plan.values()) <= _STYLES or not experts:
        raise ConfigError(f"--ep {size}: {model.config.model_type} models have no experts to deal; leave it out", USAGE)
    if experts % size:
        raise ConfigError(f"--ep {size}: there are {experts} experts, which {size} does not divide", USAGE)
    return plan


def split(model: Any, mesh: DeviceMesh, alone: DeviceMesh) -> list[nn.Parameter]:
    """Deal the experts of a transformers model over the 1-D `mesh`, in place; `alone` is a mesh of this rank only.

    Returns their parameters, whose gradients are those of the tokens of all ranks of `mesh`. Raises ConfigError (2).
    """
    from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES

    plan = check(model, mesh.size())
    dealt: list[nn.Parameter] = []
    for name, module in list(model.named_modules()):
        own = generic_name(name)
        if hasattr(module, "base_layer"):  # peft's layers around experts: tokens travel inside of them
            continue
        for parameter, _ in list(module.named_parameters(recurse=False)):
            if f"{own}.{parameter}" in plan:
                ALL_PARALLEL_STYLES[plan[f"{own}.{parameter}"]].shard_param(module, parameter, mesh)
                dealt.append(own_storage(module, parameter))
        if plan.get(own) == "ep_dispatch_experts":
            style = ALL_PARALLEL_STYLES["ep_dispatch_experts"]
            style.install_forward(module, mesh, tp_mesh=alone, ep_implementation="all_to_all")
    # adapters of stacks: peft's layers around a module whose parameter they add to
    wrappers = [module for module in model.modules() if hasattr(module, "parameter_name") and hasattr(module, "lora_A")]
    now = dict(_deal_adapter(wrapper, mesh) for wrapper in wrappers)
    return [now.get(parameter, parameter) for parameter in dealt]


def _deal_adapter(wrapper: Any, mesh: DeviceMesh) -> tuple[nn.Parameter, nn.Parameter]:
    """Let the adapter of a stack add what is of this rank's experts. Returns the stack before and after.

    The factors stay whole on every rank, or in shards like other weights, and so do their gradients: of the experts of
    others a rank's are 0, so that the sum over all ranks is right. The stack is no DTensor then: peft adds to it.
    """
    experts = wrapper.get_base_layer()
    before = experts._parameters[wrapper.parameter_name]
    after = nn.Parameter(before.to_local().detach(), requires_grad=False)
    experts._parameters[wrapper.parameter_name] = after
    count = after.shape[0]
    mine = slice(mesh.get_local_rank() * count, (mesh.get_local_rank() + 1) * count)
    whole = wrapper.get_delta_factors

    def factors(name: str) -> tuple[Tensor, Tensor, float]:
        left, right, scaling = whole(name)
        return left[mine], right[mine], scaling

    wrapper.get_delta_factors = factors
    return before, after
