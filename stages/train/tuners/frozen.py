"""What an adapter on "every linear layer" does not reach in a mixture of experts.

Transformers holds all experts of a layer in one parameter, which is no linear layer. For some families (DeepSeek V3)
PEFT adapts these stacks instead, and leaves out layers that have the names of an expert's.
"""

from typing import Any

from torch import nn

from postmill.stages.progress import Progress


def frozen_parts(model: Any) -> tuple[list[str], list[str]]:
    """Stacks of experts and linear layers of a peft model that have no adapter, by the ends of their names.

    Both are empty for a model without such stacks: there every linear layer is what it says.
    """
    base = model.get_base_model()
    stacks = {_end(name) for name, weight in base.named_parameters() if weight.ndim == 3 and ".experts." in name}
    if not stacks:
        return [], []
    adapted = tuple(model.peft_config["default"].target_parameters or ())
    heads = [base.get_output_embeddings()]
    layers = {
        name.rpartition("layers.")[2].partition(".")[2]
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear)
        and module not in heads
        and not any(part in name for part in (".lora_", ".base_layer", ".experts."))
    }
    return sorted(stack for stack in stacks if not stack.endswith(adapted)), sorted(layers)


def say_frozen(model: Any) -> None:
    """Name once what stays as it was."""
    stacks, layers = frozen_parts(model)
    if stacks:
        ask = " ".join(f"--lora.parameters {stack}" for stack in stacks)
        Progress.warn(
            "train", f"the experts ({', '.join(stacks)}) get no adapter and stay as they are; {ask} adapts them"
        )
    if layers:
        Progress.warn(
            "train",
            f"peft adapts this family's experts in place of {', '.join(layers)}, which stay as they are",
        )


def _end(name: str) -> str:
    """`mlp.experts.down_proj` of a parameter, without the layers that PEFT puts around."""
    parts = [part for part in name.split(".") if part not in ("base_layer", "original", "parametrizations")]
    return ".".join(parts[-3:])
