"""`--row-losses`: what each span of each row lost at each step, as a table of the result.

A span is a run of neighbouring trained tokens of one weight in a row. The table follows from data and step alone: it is
the same for any micro-batch or number of ranks, but for rounding.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from postmill.io.arrays import from_numpy
from postmill.io.packed import PackedReader
from postmill.io.schemas import ROW_LOSSES_V1
from postmill.stages.protocol import Out
from postmill.stages.shared.batch import Batch
from postmill.stages.train.parallel.layout import Layout

FILE = "row_losses.arrow"
KEPT = "row_losses.safetensors"
_FIELDS = ("row", "start", "end", "weight", "nll")
_ROWS_A_BATCH = 65536


class SpanSums:
    """Losses of the spans of this rank's rows in one step."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, logp_T: Tensor, batch: Batch) -> None:
        """One micro-batch more; logp_T: of its tokens."""
        if int(batch.row_R[0]) < 0:  # padding
            return
        weights_T = batch.weights_T.cpu()
        row_T, length = batch.row_T.cpu(), len(weights_T)
        starts_T = torch.tensor(batch.row_starts)[row_T]
        # a span ends where the weight changes or a row ends
        begins = torch.ones(length, dtype=torch.bool)
        begins[1:] = (weights_T[1:] != weights_T[:-1]) | (row_T[1:] != row_T[:-1])
        span_T = begins.long().cumsum(0) - 1
        first = begins.nonzero().squeeze(-1)
        nll = torch.zeros(len(first), dtype=torch.float64).index_add_(0, span_T, -logp_T.cpu().double())
        count = torch.bincount(span_T, minlength=len(first))
        kept = weights_T[first] != 0
        # a weight is stored one token before the one that it is about
        place = (torch.arange(length) - starts_T + 1)[first]
        rows = batch.row_R.cpu()[row_T[first]]
        columns = (rows, place, place + count, weights_T[first], nll)
        self._parts.append(torch.stack([column.double() for column in columns], dim=1)[kept])

    def whole(self, layout: Layout) -> Tensor:
        """float64 [spans, 5] of all ranks, in the order of rows: row, start, end, weight, sum of -log p."""
        mine = torch.cat([torch.zeros(0, len(_FIELDS), dtype=torch.float64), *self._parts])
        spans = layout.gather(mine.to(layout.device), pad=-1).cpu()
        spans = spans[spans[:, 0] >= 0]
        order = np.lexsort((spans[:, 1].numpy(), spans[:, 0].numpy()))
        return spans[torch.from_numpy(order)]


class RowLosses:
    """All steps so far."""

    def __init__(self, before: bytes | None) -> None:
        """`before` is what a checkpoint held."""
        self._parts: list[NDArray[np.float64]] = [] if before is None else [load(before)["spans"]]

    def add(self, step: int, spans: Tensor) -> None:
        """The spans of step `step`, counted from 1."""
        self._parts.append(np.column_stack([np.full(len(spans), float(step)), spans.numpy()]))

    def _all(self) -> NDArray[np.float64]:
        self._parts = [np.concatenate([np.zeros((0, len(_FIELDS) + 1)), *self._parts])]
        return self._parts[0]

    def kept(self) -> bytes:
        """For a checkpoint."""
        return save({"spans": self._all()})

    def write(self, out: Out, reader: PackedReader) -> None:
        """The table of the result."""
        table = self._all()
        writer = out.table(FILE, ROW_LOSSES_V1)
        for at in range(0, len(table), _ROWS_A_BATCH):
            part = table[at : at + _ROWS_A_BATCH]
            step, row, start, end, weight, nll = part.T
            columns: dict[str, Any] = {
                "step": step.astype(np.int32),
                "row": row.astype(np.int64),
                "start": start.astype(np.int32),
                "end": end.astype(np.int32),
                "weight": weight.astype(np.float32),
                "nll": nll,
            }
            ids = reader.values(row.astype(np.int64), "row_id")
            arrays = {name: from_numpy(values, ROW_LOSSES_V1.field(name).type) for name, values in columns.items()}
            arrays["row_id"] = pa.array(ids, ROW_LOSSES_V1.field("row_id").type)
            writer.write(
                pa.RecordBatch.from_arrays([arrays[field.name] for field in ROW_LOSSES_V1], schema=ROW_LOSSES_V1)
            )
        writer.close()
