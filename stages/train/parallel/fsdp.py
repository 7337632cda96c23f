"""Weights, gradients and moments in shards, a layer whole only while it computes: torch's FSDP2 (`fully_shard`).

Source: PyTorch FSDP, <https://arxiv.org/abs/2304.11277>, and torch.distributed.fsdp.fully_shard. A rank holds 1/N of
what is trained and of the base; a layer's weights are gathered before it runs, and gradients are reduced as they come.
On a mesh of two dimensions (HSDP) the second one shards, and the first holds copies of that.
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from postmill.stages.shared.forward import Forward
from postmill.stages.shared.hf import decoder_of


def shard(forward: Forward, mesh: DeviceMesh, apart: set[nn.Parameter]) -> None:
    """Each decoder layer is a group of its own; embedding, last norm and head are one with the `Forward`.

    In place. Gradients are averaged over all ranks of `mesh`. Parameters in `apart` stay as they are.
    """
    names = set(getattr(forward.model, "_no_split_modules", None) or [])
    for module in decoder_of(forward.model).modules():
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh, ignored_params=apart)
    # by default the outermost group stays gathered after its forward pass, and after a validation there is no
    # backward pass to end that: the optimizer would update shards that nobody reads
    fully_shard(forward, mesh=mesh, reshard_after_forward=True, ignored_params=apart)
    register_fsdp_forward_method(forward, "own_logits")
    register_fsdp_forward_method(forward, "kernel_deviation")
    register_fsdp_forward_method(forward, "hidden")
