"""One call of a decoder for all rows of a bin, or one for each."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError


def decode(
    decoder: Callable[..., Any], inputs: Mapping[str, Any], row_starts: tuple[int, ...], *, each_row: bool
) -> list[Any]:
    """What `decoder` gives for rows that lie end to end, in one piece or in one a row.

    inputs: its arguments by name, tensors [1, T, ...] or, positions, [..., T]. each_row: the layers do not keep rows
    apart. Raises ConfigError (2) for such rows with pictures.
    """
    if not each_row:
        ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
        assert ids is not None
        starts = torch.tensor(row_starts, dtype=torch.int32, device=ids.device)
        longest = max(end - start for start, end in itertools.pairwise(row_starts))
        return [
            decoder(
                **inputs,
                cu_seq_lens_q=starts,
                cu_seq_lens_k=starts,
                max_length_q=longest,
                max_length_k=longest,
                row_starts=row_starts,
            )
        ]
    if "mm_encoder_outputs" in inputs:
        raise ConfigError("this model carries a state from row to row, and cannot see pictures here yet", USAGE)
    return [decoder(**_of_row(inputs, start, end)) for start, end in itertools.pairwise(row_starts)]


def _of_row(inputs: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    return {
        name: value[..., start:end] if name == "position_ids" else value[:, start:end]
        for name, value in inputs.items()
        if isinstance(value, Tensor)
    } | {name: value for name, value in inputs.items() if not isinstance(value, Tensor)}
