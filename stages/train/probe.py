"""Looks before the first step: do the model's layers keep rows apart? Does the head compute what the model itself
computes, each row for itself? And does the loss kernel give the loss and gradients that plain torch gives?

A model that carries a state from row to row is computed row by row from then on. Then two short rows are laid end to
end and scored by `Forward`, and each is given to the model alone, logits and all. A model whose layers leak across rows
in another way, or scale their logits in one we do not know, shows here, in one second, and not in a wrong model.
"""

from typing import Any

import numpy as np
import torch

from postmill.io.errors import FAILED, USAGE, ConfigError, StageError
from postmill.io.packed import Bin, PackedReader
from postmill.stages.progress import Progress
from postmill.stages.shared.apart import settle
from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch, collate
from postmill.stages.shared.forward import Forward

_LONGEST = 48
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Mean difference of log-probabilities, in nats. SmolLM2-135M differs by 6e-6 in float32 and 0.02 in bfloat16, small
random models by 2e-7, and a leaking one (LFM2, whose convolutions reach over borders) by 4e-4. CPU, 2026-11-22."""


def check(
    forward: Forward, reader: PackedReader, dtype: torch.dtype, device: torch.device, *, loss_kernel: str, cut: bool
) -> None:
    """All looks, with the errors of all. cut: ranks share the model, or the tokens of a row.

    Raises ConfigError (2) for ranks that would have to share a model that is computed row by row.
    """
    if (settle(forward, "train", device) or forward.is_encoder_decoder) and cut:
        raise ConfigError(
            "--shard, --tp, --cp, --ep: ranks that share a model compute all rows of a bin at once, and this one is"
            " computed row by row; leave them out",
            USAGE,
        )
    if forward.head.kind == "lm":
        check_loss_kernel(forward, reader, loss_kernel, device)
    check_forward(forward, reader, dtype, device)


def check_forward(forward: Forward, reader: PackedReader, dtype: torch.dtype, device: torch.device) -> float:
    """The mean difference. Raises StageError (1) if it is above the tolerance of `dtype`."""
    was_training = forward.training
    forward.eval()
    rows = _two_rows(reader)
    with torch.no_grad():
        ours = _of_bin(forward, rows, device)
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            alone = torch.cat([_of_row(forward, row, device) for row in rows])
    forward.train(was_training)
    difference = float((ours - alone).abs().mean())
    if not difference <= _TOLERANCE[dtype]:
        what = "log-probabilities" if forward.head.kind == "lm" else "numbers"
        raise StageError(
            f"the model gives rows in a bin other {what} than alone (by {difference:.3g} on average);"
            " its layers or its head are of a kind that packing does not fit: use another model, or report this",
            FAILED,
        )
    return difference


def check_loss_kernel(forward: Forward, reader: PackedReader, wanted: str, device: torch.device) -> None:
    """Go over to plain torch, with a warning, if the loss kernel deviates from it and was chosen by `auto`.

    Raises StageError (1) if the kernel that was asked for deviates.
    """
    deviation = forward.kernel_deviation(_end_to_end(_two_rows(reader)).to(device))
    if deviation.is_acceptable:
        return
    if wanted != "auto":
        raise StageError(
            f"--loss-kernel {wanted}: {deviation.describe()}; pass --loss-kernel reference, and report this", FAILED
        )
    forward.use_reference()
    Progress.warn("train", f"{deviation.describe()}; the loss is computed in plain torch, which is slower")


def _end_to_end(rows: list[np.ndarray[Any, np.dtype[np.int32]]]) -> Batch:
    """The batch of `rows`, each token with a weight of its own."""
    lengths = [len(row) for row in rows]
    return collate(
        [
            Bin(
                np.concatenate(rows),
                np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
                np.cumsum([0, *lengths], dtype=np.int32),
                np.linspace(0.3, 3.0, sum(lengths), dtype=np.float32),
                np.zeros(len(rows), np.int64),
            )
        ]
    )


def _two_rows(reader: PackedReader) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    first = reader.bin(0)
    rows = np.split(first.input_ids, first.cu_seqlens[1:-1])
    rows = [row[:_LONGEST] for row in rows if len(row) > 1] or [first.input_ids[:_LONGEST]]
    return [rows[-1], rows[0]]


def _of_bin(forward: Forward, rows: list[np.ndarray[Any, np.dtype[np.int32]]], device: torch.device) -> torch.Tensor:
    """What `forward` says of rows that lie end to end: log-probabilities of all tokens but the first of each row, or
    the numbers of another head."""
    batch = _end_to_end(rows).to(device)
    kind = forward.head.kind
    if kind == "lm":
        logp_T = forward(batch, Ask(stats=frozenset({"logp"}))).logp_T
        assert logp_T is not None
        return torch.cat([piece[:-1] for piece in logp_T.split([len(row) for row in rows])])
    answers: Outputs = forward(batch, Ask(points_N=torch.arange(len(batch.row_T), device=device)))
    values = answers.pooled_RH if kind == "pool" else answers.values_NC
    assert values is not None
    return values


def _of_row(forward: Forward, row: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """The same of one row, from the model's own head."""
    ids = torch.from_numpy(row.astype(np.int64)).to(device)
    own = forward.own_logits(ids[None]).float()
    if forward.head.kind == "lm":
        logp: torch.Tensor = own[0, :-1].log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
        return logp
    if forward.head.kind == "pool":
        return {"last": own[:, -1], "mean": own.mean(1), "cls": own[:, 0]}[forward.head.pooling]
    return own if forward.head.kind in ("sequence", "answers") else own[0]
