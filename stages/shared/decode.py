"""One call of a decoder for all rows of a bin, or one for each; and rows through an encoder and a decoder."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError


def decode(
    decoder: Callable[..., Any],
    inputs: Mapping[str, Any],
    row_starts: tuple[int, ...],
    *,
    each_row: bool,
    parents: tuple[int, ...] = (),
) -> list[Any]:
    """What `decoder` gives for rows that lie end to end, in one piece or in one a row.

    inputs: its arguments by name, tensors [1, T, ...] or, positions, [..., T]. each_row: the layers do not keep rows
    apart. parents: see `rows_attention`. Raises ConfigError (2) for rows one by one with pictures.
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
                **({"parents": parents} if parents else {}),
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


def decode_answers(model: Any, ids_T: Tensor, mask_T: Tensor, row_starts: tuple[int, ...]) -> Tensor:
    """Hidden states of an encoder-decoder, [T, H], where a language model of one part has them: the state at a token is
    about the next one.

    A row's answer begins with its first scored token; what lies before goes to the encoder, and the decoder reads its
    start token and the answer. States of the prompt are zeros: nothing is predicted there. mask_T: bool, by the token
    before the one that is scored.
    """
    pieces = []
    for start, end in itertools.pairwise(row_starts):
        scored = mask_T[start : end - 1].nonzero()
        split = int(scored[0]) + 1 if len(scored) else end - start - 1
        hidden_LH = answer_states(model, ids_T[start:end], max(split, 1))
        before = hidden_LH.new_zeros(max(split, 1) - 1, hidden_LH.shape[1])
        after = hidden_LH.new_zeros(end - start - len(before) - len(hidden_LH), hidden_LH.shape[1])
        pieces.append(torch.cat([before, hidden_LH, after]))
    return torch.cat(pieces)


def answer_states(model: Any, ids_L: Tensor, split: int) -> Tensor:
    """What the decoder has for each token of `ids_L[split:]` before it reads it, [length - split, H]; of one token at
    least, so that all of the model takes part."""
    memory = model.get_encoder()(input_ids=ids_L[None, :split]).last_hidden_state
    answer_1L = torch.cat([ids_L.new_tensor([start_token(model)]), ids_L[split:-1]])[None]
    states = model.get_decoder()(input_ids=answer_1L, encoder_hidden_states=memory, use_cache=False)
    hidden_LH: Tensor = states.last_hidden_state[0]
    return hidden_LH[: max(len(ids_L) - split, 0)]


def start_token(model: Any) -> int:
    """What a decoder reads first."""
    token_id = model.config.decoder_start_token_id
    if token_id is None:
        token_id = getattr(model.generation_config, "decoder_start_token_id", None)
    if token_id is None:
        raise ConfigError("config.json of this encoder-decoder names no decoder_start_token_id; add it", USAGE)
    return int(token_id)


def own_answer_logits(model: Any, ids_1T: Tensor) -> Tensor:
    """What the model itself says, [1, T, V]: its first token is the prompt, the rest the answer; the last row is
    zeros."""
    start_11 = ids_1T.new_tensor([[start_token(model)]])
    answer = torch.cat([start_11, ids_1T[:, 1:-1]], dim=1)
    logits: Tensor = model(input_ids=ids_1T[:, :1], decoder_input_ids=answer, use_cache=False).logits
    return torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)
