"""Run by test_liger.py under TRITON_INTERPRET=1: one JSON line per case, how far Liger's modules are from the plain.

Triton reads that variable while it is imported, so this cannot share a process with other tests. Two things that a GPU
has and the interpreter has not are supplied here: scalars that arrive as float32 values instead of Python floats, and
libdevice's rsqrt.
"""

import copy
import json

import numpy as np
import torch
import transformers
import triton.language as tl
from liger_kernel.ops import rms_norm
from peft import LoraConfig, get_peft_model
from triton.runtime import interpreter

from postmill.io.packed import Bin
from postmill.stages.shared import attention
from postmill.stages.shared.asked import Ask, Linear
from postmill.stages.shared.batch import collate
from postmill.stages.shared.forward import Forward
from postmill.stages.train.liger import use_liger
from postmill.stages.train.model import causal_lm

COMMON = {
    "vocab_size": 61,
    "hidden_size": 24,  # not a power of two: the kernels' blocks are masked
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-2}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": 5}),
}


def build(family, dtype=torch.float32):
    """The plain model, and one with the same weights and Liger's modules."""
    torch.manual_seed(1)
    attention.choose("per-row", torch.device("cpu"), torch.float32)
    name, extra = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**(COMMON | extra))
    plain = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation=attention.ROWS)
    for parameter in plain.parameters():  # norms and biases too, so that none can hide
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    fused = copy.deepcopy(plain)
    use_liger(fused)
    return plain.to(dtype), fused.to(dtype)


def adapted(model, **options):
    torch.manual_seed(2)
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"], **options)
    config.init_lora_weights = False  # or half of all gradients are 0
    found = get_peft_model(model, config)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return found


def batch():
    """Three rows in one bin."""
    rng = np.random.default_rng(3)
    lengths = [7, 1, 11]
    return collate(
        [
            Bin(
                rng.integers(0, 61, sum(lengths)).astype(np.int32),
                np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
                np.cumsum([0, *lengths], dtype=np.int32),
                rng.choice([0.0, 0.5, 3.0], sum(lengths)).astype(np.float32),
                np.zeros(len(lengths), np.int64),
            )
        ]
    )


def compare(plain, fused, dtype=torch.float32):
    """Relative deviation of the loss, and the largest one of a gradient, against its largest entry."""
    losses, gradients = [], []
    for model in (plain, fused):
        forward = Forward(causal_lm(model), compute_dtype=dtype, backend="reference").train()
        found = batch()
        loss = forward(found, Ask(linear=Linear(found.weights_T, 3.0))).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    gaps = {
        n: float((gradients[1][n] - g).abs().max() / g.abs().max().clamp(min=1e-6)) for n, g in gradients[0].items()
    }
    return {"loss": abs(losses[1] / losses[0] - 1), "gradient": max(gaps.values()), "gradients": len(gaps)}


def checkpointed(plain, fused):
    fused.gradient_checkpointing_enable({"use_reentrant": False})
    return compare(plain, fused)


def cases():
    for family in FAMILIES:
        yield family, lambda f=family: compare(*build(f))
    yield "qwen3 checkpointed", lambda: checkpointed(*build("qwen3"))
    yield "qwen3 lora", lambda: compare(*map(adapted, build("qwen3")))
    yield "llama dora", lambda: compare(*(adapted(m, use_dora=True) for m in build("llama")))
    yield "qwen3 lora on norms", lambda: compare(*(adapted(m, modules_to_save=["norm"]) for m in build("qwen3")))
    # in place of bfloat16, which the interpreter computes wrongly
    yield "float16 weights", lambda: compare(*map(adapted, build("qwen3", torch.float16)), dtype=torch.float16)


def as_a_gpu_gets_it(plain):
    def convert(argument):
        if isinstance(argument, float):
            return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)
        return plain(argument)

    return convert


def main():
    torch.set_num_threads(1)
    interpreter._implicit_cvt = as_a_gpu_gets_it(interpreter._implicit_cvt)
    rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # noqa: PLW0108  # the interpreter puts another in its place
    for name, run in cases():
        print(json.dumps([name, run()]), flush=True)


if __name__ == "__main__":
    main()
