"""Expert parallelism: the experts of each layer are dealt to the ranks of a group; tokens travel to them and back.

Ranks of the group compute bins of their own. In each layer a token and its gates are sorted by expert, sent to the rank
that has it, and the results come back: two exchanges forward, two backward, by transformers' plan and functions
(`ep_plan`). Source: GShard, <https://arxiv.org/abs/2006.16668>.
"""

from typing import Any

from torch import nn
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
        for parameter, _ in list(module.named_parameters(recurse=False)):
            if f"{own}.{parameter}" in plan:
                ALL_PARALLEL_STYLES[plan[f"{own}.{parameter}"]].shard_param(module, parameter, mesh)
                dealt.append(own_storage(module, parameter))
        if plan.get(own) == "ep_dispatch_experts":
            style = ALL_PARALLEL_STYLES["ep_dispatch_experts"]
            style.install_forward(module, mesh, tp_mesh=alone, ep_implementation="all_to_all")
    return dealt
