"""The model of speed against published runs: what it says, how far off it is, and where it is wrong."""

import math

import pytest

from postmill.stages.train.cost.machines import KINDS
from postmill.stages.train.cost.shape import Shape
from postmill.stages.train.cost.speed import Plan, step_speed


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
UNEXPLAINED = "30B-A3B Megatron"
"""6% of the GPUs' peak; nothing in the published settings says why."""


def ratio(row):
    _, what, published, kind, model, layout = row
    return getattr(step_speed(model, KINDS[kind], layout), what) / published


def test_published_runs_are_met_within_a_fifth():
    off = {row[0]: abs(math.log(ratio(row))) for row in PUBLISHED}
    assert math.exp(sorted(off.values())[len(off) // 2]) < 1.08
    assert [name for name, one in off.items() if one > math.log(1.21)] == [UNEXPLAINED]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (plan(8, 16, 8192, sharded=True), plan(8, 16, 8192, sharded=True, checkpointing=True)),
        (plan(8, 16, 8192, tp=2), plan(8, 16, 8192, tp=8)),
        (plan(64, 64, 8192, pp=4, stages=4), plan(64, 64, 8192, pp=4)),
    ],
)
def test_what_costs_more_takes_longer(better, worse):
    kind = KINDS["h100"]
    assert step_speed(LLAMA_8, kind, better).seconds < step_speed(LLAMA_8, kind, worse).seconds
