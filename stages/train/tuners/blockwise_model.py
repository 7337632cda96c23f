"""Layers that take turns: what is trained is a function of the seed and the step, so there is nothing to remember."""

from collections.abc import Callable
from typing import Any

import torch

from postmill.stages.train.tuners.full import all_tensors, load_whole, save_model
from postmill.stages.train.tuners.interface import Start, Tuner
from postmill.stages.train.tuners.layers import layers_of

Choose = Callable[[int, int, Start], list[int]]
"""Layers that are trained, from the number of the period, the number of layers, and what the tuner started from."""


def draw(seed: int, number: int, num_blocks: int, count: int) -> list[int]:
    """`count` different layers, the draw of `number`."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**62)
    return torch.randperm(num_blocks, generator=generator)[:count].tolist()


def blockwise_tuner(every: int, choose: Choose, *, outside: bool) -> Tuner:
    """Full training in which only some layers learn, others every so many steps.

    outside: whether what lies outside of the layers (embedding, last norm, head) is trained all the time.
    """
    begun: list[Start] = []
    current = [-1]

    def start(given: Start) -> Any:
        model = load_whole(given)
        if not outside:
            model.requires_grad_(False)
            layers_of(model).requires_grad_(True)
        begun[:] = [given]
        return model

    def before_step(model: Any, optimizer: torch.optim.Optimizer, number: int) -> None:
        period = number // every
        if period == current[0]:
            return
        current[0] = period
        blocks = layers_of(model)
        chosen = choose(period, len(blocks), begun[0])
        for index, block in enumerate(blocks):
            block.requires_grad_(index in chosen)
            if index not in chosen:
                for parameter in block.parameters():
                    optimizer.state.pop(parameter, None)

    return Tuner(start, all_tensors, save_model, before_step=before_step, one_rank=True)
