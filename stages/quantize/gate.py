"""Does the quantized model say what its source says? Asked of both on the same tokens, layer by layer, in float32.

The result is read back from disk and its codes are widened exactly, so that what is judged is what others will load: a
scrambled scale or a swapped tensor is seen. Where activations are quantized when the model runs, they are here too.
Perplexity alone ranks methods wrongly (it may even fall), so agreement and KL divergence are judged as well.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.io.errors import FAILED, StageError
from postmill.stages.progress import Progress
from postmill.stages.quantize.activations import rounded_activations
from postmill.stages.quantize.config import Gate
from postmill.stages.quantize.layers import Read, Row, StreamedModel
from postmill.stages.quantize.plan import Plan
from postmill.stages.shared.parity import rounded

LONGEST_ROW = 512
"""Tokens of a row that are compared; its logits are in memory whole, twice."""
_SMALL = 1_000_000_000


class Limits(NamedTuple):
    """What is still allowed; None is not judged."""

    ppl_increase: float | None
    agreement: float
    kl: float


class Measured(NamedTuple):
    """Per position [T]: negative log-likelihood of the next token under both, agreement, KL(source || result)."""

    nll_source: Tensor
    nll_result: Tensor
    agrees: Tensor
    kl: Tensor


def limits_of(
    cfg: Gate,
    fewest_bits: int,
    num_parameters: int,
    *,
    judge_ppl: bool,
    num_tokens: int,
    rounds_activations: bool = False,
) -> Limits:
    """The limits said, or those that follow from the fewest bits of any layer and the size of the model.

    Of few tokens, some more may disagree: two standard errors of the agreement that is asked for.
    """
    small = num_parameters < _SMALL
    ppl, agreement, kl = (0.01, 0.97, 0.02) if fewest_bits >= 8 else (0.25, 0.7, 0.5) if small else (0.06, 0.88, 0.15)
    if fewest_bits >= 8 and small and rounds_activations:
        # SmolLM2-135M, 1,024 tokens: perplexity +2.9%, 88% and 0.037 with w8a8, +2.9%, 89% and 0.031 with fp8
        ppl, agreement, kl = 0.05, 0.85, 0.06
    ppl_limit = cfg.max_ppl_increase if cfg.max_ppl_increase is not None else ppl if judge_ppl else None
    agreement -= 2 * (agreement * (1 - agreement) / num_tokens) ** 0.5
    return Limits(
        ppl_limit,
        round(agreement, 4) if cfg.min_agreement is None else cfg.min_agreement,
        kl if cfg.max_kl is None else cfg.max_kl,
    )


def compare(
    source: StreamedModel,
    result: StreamedModel,
    *,
    read_source: Read,
    read_result: Read,
    plan: Plan | None,
    rows: list[list[int]],
    threads: int,
) -> dict[str, Any]:
    """Go through both models with `rows`, each of two tokens or more. Returns the report.

    plan: which layers' activations are rounded in the result; None for none. `source` and `result` may be one object if
    nothing outside the layers was quantized.
    """
    source.load_ends(read_source)
    begun = [source.start(ids) for ids in rows]
    calls = [row for row, _ in begun]
    right = [hidden for _, hidden in begun]
    left = right
    if result is not source:
        source.unload_ends()
        result.load_ends(read_result)
        left = [result.start(ids)[1] for ids in rows]
        result.unload_ends()
    errors: list[tuple[float, int]] = []
    with ThreadPoolExecutor(threads) as pool:
        for index in range(len(source.layers)):
            Progress.say("quantize", f"comparing layer {index + 1} of {len(source.layers)}")
            right = _through(source, index, read_source, rows=calls, hidden=right, plan=None, pool=pool)
            left = _through(source, index, read_result, rows=calls, hidden=left, plan=plan, pool=pool)
            off = sum(float((a - b).square().sum()) for a, b in zip(left, right, strict=True))
            size = sum(float(b.square().sum()) for b in right)
            errors.append(((off / max(size, 1e-30)) ** 0.5, index))
    if result is source:
        measured = [
            _measure(source.logits(row, b), source.logits(row, a), row)
            for row, a, b in zip(calls, left, right, strict=True)
        ]
    else:
        source.load_ends(read_source)
        expected = [source.logits(row, hidden) for row, hidden in zip(calls, right, strict=True)]
        result.load_ends(read_result)
        measured = [_measure(b, result.logits(row, a), row) for row, a, b in zip(calls, left, expected, strict=True)]
    return _report(measured, errors)


def _through(
    model: StreamedModel,
    index: int,
    read: Read,
    *,
    rows: list[Row],
    hidden: list[Tensor],
    plan: Plan | None,
    pool: ThreadPoolExecutor,
) -> list[Tensor]:
    """Hidden states of all rows after one layer; with a plan, activations are rounded where it says so."""
    layer = model.load_layer(index, read)
    prefix = f"{model.prefix}.{index}."
    with rounded_activations(plan, prefix, layer) if plan else nullcontext():
        after = list(pool.map(lambda pair: model.through(index, *pair), zip(rows, hidden, strict=True)))
    model.unload_layer(index)
    return after


def _measure(source_TV: Tensor, result_TV: Tensor, row: Row) -> Measured:
    with torch.inference_mode():
        p, q = source_TV.log_softmax(-1), result_TV.log_softmax(-1)
        following = row.ids[0, 1:, None]
        return Measured(
            -p[:-1].gather(-1, following)[:, 0],
            -q[:-1].gather(-1, following)[:, 0],
            p.argmax(-1) == q.argmax(-1),
            (p.exp() * (p - q)).sum(-1),
        )


def _report(measured: list[Measured], errors: list[tuple[float, int]]) -> dict[str, Any]:
    nll_source, nll_result, agrees, kl = (torch.cat(list(parts)).double() for parts in zip(*measured, strict=True))
    before, after = float(nll_source.mean().exp()), float(nll_result.mean().exp())
    worst = sorted(errors, reverse=True)[:5]
    return {
        "num_tokens": len(agrees),
        "perplexity_source": rounded(before),
        "perplexity_result": rounded(after),
        "perplexity_increase": rounded(after / before - 1),
        "top1_agreement": rounded(agrees.mean()),
        "kl_mean": rounded(kl.mean()),
        "kl_99th": rounded(kl.quantile(0.99)),
        "worst_layers": [{"layer": index, "relative_error": rounded(error)} for error, index in worst],
    }


def judge(report: dict[str, Any], limits: Limits) -> None:
    """Raises StageError (1) naming every limit that the report breaks. What is not a number breaks all."""
    faults = []
    if limits.ppl_increase is not None and not report["perplexity_increase"] <= limits.ppl_increase:
        faults.append(
            f"perplexity rises by {report['perplexity_increase']:.1%}, from {report['perplexity_source']} to"
            f" {report['perplexity_result']}, more than --max-ppl-increase {limits.ppl_increase:.1%}"
        )
    if not report["top1_agreement"] >= limits.agreement:
        faults.append(
            f"the likeliest token agrees at {report['top1_agreement']:.1%}, --min-agreement {limits.agreement:.1%}"
        )
    if not report["kl_mean"] <= limits.kl:
        faults.append(f"KL divergence is {report['kl_mean']} nats a token, more than --max-kl {limits.kl}")
    if faults:
        raise StageError(
            f"gate: on {report['num_tokens']} tokens {'; '.join(faults)}; nothing was committed; keep more bits"
            f" (--scheme, --group-size, --rule), try another --method, or raise the limit",
            FAILED,
        )
