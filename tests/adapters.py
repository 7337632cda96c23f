"""Models of a few thousand random weights, adapters of any method on them, and what they compute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file

from postmill.stages.merge.config import STAGE, Merge
from postmill.stages.runner import Options, run_stage

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA = SMALL | {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def save_base(path: Path, config: Any, dtype: str = "float32") -> Path:
    """A causal model with random weights, none of them zero or one."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path)
    return path


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def save_adapter(
    path: Path, base: Path, config: Any, rows: int = 0, trained: Callable[[str], bool] | None = None, **save: Any
) -> Any:
    """An adapter with random numbers, saved by PEFT. Returns the logits of base + adapter.

    rows: of the vocabulary, resized. trained: which weights are not as PEFT made them.
    """
    torch.manual_seed(2)
    model = load(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if weight.requires_grad and (trained is None or trained(name)):
                weight.add_(torch.randn_like(weight) * 0.1)
    wrapped.save_pretrained(path, **save)
    return logits(wrapped.eval())


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(torch.arange(1, 13)[None]).logits.float()


def merge(adapters: list[Path], base: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Run the stage without the parity check, unless asked for. Returns the metrics."""
    given = {"parts": [str(a) for a in adapters], "model": [str(base)]}
    return run_stage(STAGE, Merge(**({"parity": "off"} | options)), given, out, Options(threads=2)).manifest.metrics


def tensors(folder: Path) -> dict[str, Any]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def far_apart(found: Any, wanted: Any) -> float:
    """Largest difference as a share of the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())
