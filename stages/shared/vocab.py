"""A head whose vocabulary is cut over ranks (tensor parallelism), for the loss kernels."""

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor


def is_slice(weight_VH: Tensor) -> bool:
    """Whether a rank holds but a part of it."""
    return isinstance(weight_VH, DTensor)


def sliced_head(head: dict[str, Any]) -> dict[str, Any]:
    """What the vocabulary-parallel loss is given, from what the loss of the whole head would be given."""
    weight_VH: DTensor = head["weight_VH"]
    bias_V = head["bias_V"]
    mesh = weight_VH.device_mesh
    # torch deals in chunks of equal size, the last ones shorter
    chunk = -(-weight_VH.shape[0] // mesh.size())
    return {name: value for name, value in head.items() if name not in ("weight_VH", "bias_V")} | {
        "weight_NH": weight_VH.to_local(),
        "bias_N": None if bias_V is None else bias_V.to_local(),
        "vocab_start": min(mesh.get_local_rank() * chunk, weight_VH.shape[0]),
        "vocab_size": weight_VH.shape[0],
        "group": mesh.get_group(),
    }


def whole_head(head: dict[str, Any]) -> dict[str, Any]:
    """The head gathered from all ranks; differentiable."""
    whole = {name: head[name].full_tensor() for name in ("weight_VH", "bias_V") if isinstance(head[name], DTensor)}
    return head | whole
