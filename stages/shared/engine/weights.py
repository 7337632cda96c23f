"""What weights in memory are, as a digest."""

import importlib
from collections.abc import Iterable
from typing import Any


def tensors_digest(tensors: Iterable[tuple[str, Any]]) -> str:
    """Of names, dtypes, shapes and bytes."""
    from blake3 import blake3

    torch: Any = importlib.import_module("torch")
    hasher = blake3()
    for name, tensor in tensors:
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"blake3:{hasher.hexdigest()}"
