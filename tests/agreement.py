"""How near losses are to their oracles, and steps to steps that are cut otherwise: kept for the table in the docs.

`pytest tests/stages/train --oracles docs/oracles.json` writes down what a run found.
"""

from typing import Any

FOUND: dict[str, dict[str, Any]] = {}
"""`objective|oracle` -> number of cases, and the largest relative difference of losses and of gradients."""


def against(objective: str, oracle: str, ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """ours, theirs: a loss, or a loss and its gradient."""
    line = FOUND.setdefault(f"{objective}|{oracle}", {"cases": 0})
    line["cases"] += 1
    for name, mine, other in zip(("loss", "gradient"), ours, theirs, strict=False):
        line[name] = max(line.get(name, 0.0), _difference(mine, other))


def _difference(ours: Any, theirs: Any) -> float:
    """Largest difference of two numbers or tensors over the largest number."""
    import torch

    mine, other = (torch.as_tensor(value).detach().double() for value in (ours, theirs))
    return float((mine - other).abs().max()) / max(float(other.abs().max()), 1e-300)
