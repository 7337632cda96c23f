"""The rows of one call on a GPU: the active ones gathered to the front, on the device, and buffers beside them.

Letters: T tokens, R rows of a buffer, V vocabulary, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from postmill.kernels.loss_scale_ce.terms import Coefficients, Gradients, Head, Needs, Rows
from postmill.kernels.loss_scale_ce.triton_tuning import tuning_for


class Factors(NamedTuple):
    """What dz is made of, row by row."""

    factors_5R: Tensor
    """lse, and a, e, b, c over `unit`; zeros past the last active row."""
    unit: Tensor
    """(1), the largest magnitude of a, e, b and c where gradients are float16, else 1."""


class Batch:
    """The active rows, gathered on the device, the head, and room for what is made of them."""

    def __init__(self, hidden_TH: Tensor, head: Head, rows: Rows) -> None:
        self.head, self.dtype, self.device = head, hidden_TH.dtype, hidden_TH.device
        self.one = torch.ones(1, device=self.device)
        self.bias_V = None if head.bias_V is None else head.bias_V.contiguous()
        self.weight_VH = _aligned(head.weight_VH)
        self.vocab_size, self.hidden_size = self.weight_VH.shape
        self.num_tokens = len(rows.targets_T)
        self.tuning = tuning_for(self.dtype, _capability(self.device))
        self.num_programs = _num_multiprocessors(self.device)
        # Active rows first, in order; the filler behind them gathers row 0 and scatters to a row that is cut off.
        every_T = torch.arange(self.num_tokens, device=self.device)
        slot_T = torch.where(rows.active_T, rows.active_T.cumsum(0) - 1, self.num_tokens)
        gather = torch.zeros(self.num_tokens + 1, dtype=torch.int64, device=self.device)
        self.gather_T = gather.scatter_(0, slot_T, every_T)[: self.num_tokens]
        self.count = rows.active_T.sum(dtype=torch.int32).reshape(1)
        self.is_filled_T = every_T < self.count
        # Zeros behind the active rows: what is there meets the zeros of dz, and 0 * NaN is NaN.
        self.hidden_TH = _aligned(hidden_TH[self.gather_T].masked_fill_(~self.is_filled_T[:, None], 0))
        self.targets_T = rows.targets_T[self.gather_T]

    def spread(self, values_KT: Tensor) -> Tensor:
        """From gathered order back to the caller's along the last dimension, 0 on skipped rows."""
        out = values_KT.new_zeros(len(values_KT), self.num_tokens + 1)
        scatter_T = torch.where(self.is_filled_T, self.gather_T, self.num_tokens)
        return out.index_copy_(1, scatter_T, values_KT)[:, : self.num_tokens]

    def factors(self, first: int, lse_R: Tensor, coefficients: Coefficients) -> Factors:
        """Of the gathered rows from `first` on, from their log-sum-exp and coefficients."""
        # Past the last active row lie uninitialised statistics: they must not reach the maximum.
        is_filled_R = self.is_filled_T[first : first + len(lse_R)]
        factors_5R = torch.where(is_filled_R, torch.stack([lse_R, *coefficients]).float(), 0)
        factors_5R[1:] *= self.head.scale
        if self.dtype != torch.float16:  # nothing else is as narrow, and chunks of rows can be added as they are
            return Factors(factors_5R, self.one)
        unit = factors_5R[1:].abs().max().reshape(1)
        factors_5R[1:] /= torch.where(unit == 0, 1, unit)
        return Factors(factors_5R, unit)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised, on the batch's device."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def empty_rows(self, num_rows: int, num_columns: int) -> Tensor:
        """Uninitialised, in the dtype of the inputs, its rows at multiples of 16 bytes."""
        return _empty_rows(num_rows, num_columns, self.hidden_TH)

    def gradients(self, needs: Needs) -> Gradients:
        """Room for the gradients: hidden's with zeros for the skipped rows, the others uninitialised."""
        hidden_shape = (self.num_tokens, self.hidden_size) if needs.hidden else (0,)
        return Gradients(
            torch.zeros(hidden_shape, dtype=self.dtype, device=self.device),
            self.empty(*(self.weight_VH.shape if needs.weight else (0,)), dtype=self.dtype),
            self.empty(self.vocab_size if needs.bias else 0),
        )

    def finish(self, found: Gradients) -> Gradients:
        """In the dtypes of the inputs."""
        return Gradients(*(gradient.to(self.dtype) for gradient in found))


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def _aligned(matrix: Tensor) -> Tensor:
    """Itself, or a copy where its rows do not all start at multiples of 16 bytes, as descriptors need it."""
    num_rows, num_columns = matrix.shape
    is_aligned = matrix.stride(0) * matrix.dtype.itemsize % 16 == 0 and matrix.data_ptr() % 16 == 0
    if is_aligned and matrix.stride(1) == 1 and matrix.stride(0) >= num_columns:
        return matrix
    return _empty_rows(num_rows, num_columns, matrix).copy_(matrix)


def _empty_rows(num_rows: int, num_columns: int, like: Tensor) -> Tensor:
    per_16_bytes = 16 // like.dtype.itemsize
    return like.new_empty(num_rows, ceil_div(num_columns, per_16_bytes) * per_16_bytes)[:, :num_columns]


def _num_multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 4


def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
