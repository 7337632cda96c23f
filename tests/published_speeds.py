"""Speeds of training that others published, as layouts of the model of speed, and how far off it is on unseen ones.

`PYTHONPATH=tests python tests/published_speeds.py` prints the table of docs/estimating.md.
"""

import math

import msgspec

from postmill.stages.train.cost.machines import KINDS
from postmill.stages.train.cost.shape import Shape
from postmill.stages.train.cost.speed import Constants, Plan, step_speed


def shape(hidden, layers, heads, keys, inner, vocab, experts=0, chosen=0):
    return Shape(
        family="llama",
        hidden=hidden,
        layers=layers,
        heads=heads,
        key_heads=keys,
        head_size=128,
        inner=inner,
        vocab=vocab,
        tied=False,
        experts=experts,
        chosen=chosen,
    )


LLAMA_8 = shape(4096, 32, 32, 8, 14336, 128256)
LLAMA_70 = shape(8192, 80, 64, 8, 28672, 128256)
LLAMA_405 = shape(16384, 126, 128, 8, 53248, 128256)
QWEN_14 = shape(5120, 48, 40, 8, 13824, 152064)
QWEN_30 = shape(2048, 48, 32, 4, 768, 151936, 128, 8)
QWEN_235 = shape(4096, 94, 64, 4, 1536, 151936, 128, 8)
MIXTRAL = shape(6144, 56, 48, 8, 16384, 32768, 8, 2)


def plan(ranks, rows, row_tokens, **options):
    return Plan(ranks, rows * row_tokens, row_tokens, **options)


ZERO_3 = {"sharded": True, "gradient_bytes": 2, "checkpointing": True}
FP8_FSDP = {"fp8": True, "sharded": True}
TITAN_405 = {"tp": 8, "pp": 8, "checkpointing": True, "fp8": True}
PUBLISHED = [
    # torchtitan, <https://arxiv.org/abs/2410.06511>
    ("8B FSDP 8", "tokens_per_gpu", 6667, "h100-500w", LLAMA_8, plan(8, 16, 8192, micro_rows=2, sharded=True)),
    ("8B FSDP 128", "tokens_per_gpu", 6514, "h100-500w", LLAMA_8, plan(128, 256, 8192, micro_rows=2, sharded=True)),
    (
        "70B FSDP 32 TP 8",
        "tokens_per_gpu",
        829,
        "h100-500w",
        LLAMA_70,
        plan(256, 512, 8192, tp=8, micro_rows=16, checkpointing=True, **FP8_FSDP),
    ),
    ("405B 1F1B", "tokens_per_gpu", 100, "h100-500w", LLAMA_405, plan(512, 256, 8192, **TITAN_405)),
    ("405B interleaved", "tokens_per_gpu", 128, "h100-500w", LLAMA_405, plan(512, 256, 8192, stages=2, **TITAN_405)),
    # Megatron-Bridge's performance summary, <https://docs.nvidia.com/nemo/megatron-bridge/latest/performance-summary.html>
    ("8B FP8", "tokens_per_gpu", 14451, "h100", LLAMA_8, plan(8, 128, 8192, **FP8_FSDP)),
    ("70B", "tokens_per_gpu", 1602, "h100", LLAMA_70, plan(64, 128, 8192, tp=4, pp=8, stages=5, fp8=True)),
    ("405B", "tokens_per_gpu", 292, "h100", LLAMA_405, plan(1024, 512, 8192, tp=8, pp=8, cp=2, stages=8, fp8=True)),
    ("30B-A3B FP8", "tokens_per_gpu", 8901, "h100", QWEN_30, plan(16, 1024, 4096, ep=16, fp8=True)),
    ("30B-A3B", "flops_per_gpu", 299e12, "h100", QWEN_30, plan(16, 1024, 4096, ep=8)),
    ("235B", "tokens_per_gpu", 1686, "h100", QWEN_235, plan(256, 8192, 4096, tp=2, pp=8, stages=4, ep=32, fp8=True)),
    # MoE Parallel Folding, <https://arxiv.org/abs/2504.14960>
    ("8x22B", "flops_per_gpu", 0.493 * 989e12, "h100", MIXTRAL, plan(128, 256, 4096, tp=2, pp=8, stages=7, ep=8)),
    # ms-swift's Megatron documentation, <https://swift.readthedocs.io>
    ("14B Megatron", "seconds", 9.04, "a800", QWEN_14, plan(8, 16, 8192, tp=4)),
    ("14B ZeRO-2", "seconds", 10.32, "a800", QWEN_14, plan(8, 16, 8192, checkpointing=True, gradient_bytes=2)),
    ("14B ZeRO-3", "seconds", 10.56, "a800", QWEN_14, plan(8, 16, 8192, **ZERO_3)),
    ("30B-A3B Megatron", "seconds", 9.6, "a800", QWEN_30, plan(16, 16, 8192, pp=2, ep=8, checkpointing=True)),
    ("30B-A3B ZeRO-3", "seconds", 91.2, "a800", QWEN_30, plan(16, 16, 8192, experts_apart=True, **ZERO_3)),
]

START = {f"share {kind}": 0.5 for kind in ("h100", "h100-500w", "a800")}
START |= {f"fp8 {kind}": 1.5 for kind in ("h100", "h100-500w")}
START |= {"tp_cost": 0.05, "small_experts": 0.8, "experts": 0.8, "gather_s": 1e-3}
START |= {f"hidden_{what}": 0.5 for what in ("tp", "ep", "cp", "gradients", "gathers")}
"""Round numbers that a fit starts from, and stays at where no row says otherwise."""


def ratio_of(row, values=None):
    """What the model says over what was published, above 1 where it is too fast; with other constants than its own."""
    _, what, published, name, model, layout = row
    kind, by = KINDS[name], Constants()
    if values:
        kind = msgspec.structs.replace(kind, share=values[f"share {name}"], fp8=values.get(f"fp8 {name}", 1.0))
        by = Constants(**{key: value for key, value in values.items() if key in Constants._fields})
    found = getattr(step_speed(model, kind, layout, by), what) / published
    return 1 / found if what == "seconds" else found


def fit(rows):
    """Constants that meet `rows`: least absolute error in the logarithm, each constant held near its start a little."""

    def cost(values):
        near = sum(math.log(values[key] / START[key]) ** 2 for key in START)
        return sum(abs(math.log(ratio_of(row, values))) for row in rows) + 0.05 * near

    values, step = dict(START), 0.2
    best = cost(values)
    while step > 0.02:
        improved = False
        for key in START:
            for factor in (math.exp(step), math.exp(-step)):
                tried = values | {key: values[key] * factor}
                if key.startswith(("share", "hidden")) or "experts" in key:
                    tried[key] = min(tried[key], 1.0)
                if (now := cost(tried)) < best - 1e-9:
                    values, best, improved = tried, now, True
        step = step if improved else step / 2
    return values


def leave_one_out():
    """For each row its name and `ratio_of`, with constants fitted on the others."""
    return [(row[0], ratio_of(row, fit([other for other in PUBLISHED if other is not row]))) for row in PUBLISHED]


if __name__ == "__main__":
    unseen = dict(leave_one_out())
    seen = fit(PUBLISHED)
    start = dict(START)
    print("| run | published | with our constants | left out | untuned |\n|---|---|---|---|---|")
    for row in PUBLISHED:
        name, what, published = row[:3]
        shown = {"flops_per_gpu": f"{published / 1e12:,.0f} TFLOP/s", "seconds": f"{published:g} s"}
        percents = [f"{100 * (one - 1):+.0f}%" for one in (ratio_of(row), unseen[name], ratio_of(row, start))]
        print(f"| {name} | {shown.get(what, f'{published:,.0f} tokens/s')} | {' | '.join(percents)} |")
    for what, off in (("ours", map(ratio_of, PUBLISHED)), ("left out", unseen.values())):
        size = sorted(abs(math.log(one)) for one in off)
        print(what, "median", f"{100 * (math.exp(size[len(size) // 2]) - 1):.1f}%")
    print({key: round(value, 4) for key, value in seen.items()})
