"""Activations rounded as a runtime rounds them, while layers run here."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from postmill.kernels.quantize.grid import round_activations
from postmill.stages.quantize.plan import Plan


@contextmanager
def rounded_activations(plan: Plan, prefix: str, layer: nn.Module) -> Iterator[None]:
    """Inside, the linear modules of `layer` round their inputs where the plan says so. prefix: of their names in it."""
    with ExitStack() as hooks:
        for name, module in layer.named_modules():
            target = plan.targets.get(f"{prefix}{name}")
            if target and target.activations:
                how = (target.form.floating, target.activation_group)
                handle = module.register_forward_pre_hook(
                    lambda _, given, how=how: (round_activations(given[0], *how), *given[1:])
                )
                hooks.callback(handle.remove)
        yield
