"""The result against its source: on which rows they are asked, within which limits, and what is kept of it."""

from typing import Any

import msgspec

from postmill.io.errors import ArtifactError
from postmill.io.safetensors_file import Weights
from postmill.stages.protocol import Inputs, Out
from postmill.stages.quantize.config import Quantize
from postmill.stages.quantize.experts import by_class
from postmill.stages.quantize.gate import LONGEST_ROW, compare, judge, limits_of
from postmill.stages.quantize.layers import StreamedModel
from postmill.stages.quantize.plan import Plan
from postmill.stages.quantize.rows import choose_rows, tokenizer_of
from postmill.stages.shared.parity import REPORT, prompt_ids
from postmill.stages.shared.quantized_weights import read_float32


def check_result(
    cfg: Quantize,
    inputs: Inputs,
    out: Out,
    *,
    model: Any,
    weights: Weights,
    read: Any,
    plan: Plan | None,
    fewest_bits: int,
    outside: bool,
    seen: dict[bytes, list[int]],
) -> dict[str, Any]:
    """Compare source and result; the report is written into the artifact and returned.

    read: from a tensor's name to its numbers as read back from disk; outside: whether any outside the layers differs;
    seen: rows that calibration has taken.
    """
    chosen: dict[bytes, list[int]] = {}
    if given := inputs["held_out"] or inputs["rows"]:
        try:
            chosen = choose_rows(given[0], cfg.gate.parity_tokens, LONGEST_ROW, tokenizer_of(model.folder), seen)
        except ArtifactError:
            if inputs["held_out"]:
                raise
            # calibration has taken all rows
    rows = list(chosen.values())
    if not rows:
        rows = [ids[: cfg.gate.parity_tokens] for ids in prompt_ids(model.folder) if len(ids) > 1]
    report = compare(
        model,
        StreamedModel(model.folder) if outside else model,
        read_source=by_class(lambda name: read_float32(weights, name), weights.where),
        read_result=by_class(read, weights.where),
        plan=plan,
        rows=rows,
        threads=out.threads,
    )
    rounds = plan is not None and any(target.activations for target in plan.targets.values())
    limits = limits_of(
        cfg.gate,
        fewest_bits,
        model.num_parameters,
        judge_ppl=bool(chosen),
        num_tokens=report["num_tokens"],
        rounds_activations=rounds,
    )
    report = {"source": "rows" if chosen else "prompts"} | report | {"limits": limits._asdict()}
    (out.dir / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    judge(report, limits)
    return report
