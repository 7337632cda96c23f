"""Attention that ends at the border of each row of a bin.

Two functions are given to transformers through its public attention interface. `rows_attention` runs torch's causal
kernel on each row's slice; `flash_attention` hands all rows to flash-attn's varlen kernel at once. Neither makes a
(T, T) mask, and the work is the sum of squares of the row lengths.
Tensor letters: N heads, K key/value heads, T tokens of the bin, L tokens of a row, D head size.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from postmill.io.errors import USAGE, ConfigError

ROWS = "postmill_rows"
VARLEN = "postmill_varlen"  # transformers takes every name with "flash" in it for one of its own


class Blocks(NamedTuple):
    """Which tokens of a row see each other both ways, as those of a picture do in some models."""

    number_T: Tensor
    """int64: tokens of a row with the same number, from 0; -1 for causal ones."""
    over_window: bool
    """Whether they see each other beyond a sliding window too."""


def choose(wanted: str, device: torch.device, dtype: torch.dtype, *, deterministic: bool = True) -> str:
    """The attention implementation for `--attention`; makes ours known to transformers.

    Raises ConfigError (2) if flash-attn is asked for and cannot run here.
    """
    from transformers import AttentionInterface
    from transformers.utils.import_utils import is_flash_attn_2_available

    AttentionInterface.register(ROWS, rows_attention)
    can_flash = device.type == "cuda" and dtype != torch.float32 and is_flash_attn_2_available()
    if wanted == "flash" and not can_flash:
        raise ConfigError("--attention flash: needs flash-attn, a GPU and --dtype bfloat16; use per-row", USAGE)
    if not can_flash or wanted == "per-row":
        return ROWS
    from flash_attn import flash_attn_varlen_func

    AttentionInterface.register(VARLEN, flash_attention(flash_attn_varlen_func, dtype, deterministic=deterministic))
    return VARLEN


def most_tokens(config: Any) -> int:
    """The longest bin whose rows are here what they are alone: Llama 4 cuts attention into chunks, and scales it by
    how far a token is from the start of the whole input."""
    text = config.get_text_config()
    chunk = getattr(text, "attention_chunk_size", None) or sys.maxsize
    scaled = text.floor_scale - 1 if getattr(text, "attn_temperature_tuning", False) else sys.maxsize
    return min(chunk, scaled)


def flash_attention(
    varlen: Callable[..., Tensor], dtype: torch.dtype, *, deterministic: bool
) -> Callable[..., tuple[Tensor, None]]:
    """The attention function that calls `varlen` with all rows of a bin end to end, in `dtype`.

    varlen: flash-attn's `flash_attn_varlen_func`, 2.4.1 or newer (<https://github.com/Dao-AILab/flash-attention>).
    deterministic: its backward pass adds in a fixed order, as the resume of a run to the same bits asks.
    """

    def attend(  # noqa: PLR0917  # the interface's signature
        module: torch.nn.Module,
        query_1NTD: Tensor,
        key_1KTD: Tensor,
        value_1KTD: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attention within the rows that the int32 `cu_seq_lens_q` bounds; without it all is one row."""
        _refuse_sinks(s_aux)
        num_tokens, head_size = query_1NTD.shape[2:]
        if cu_seq_lens_q is None:
            cu_seq_lens_q = torch.tensor([0, num_tokens], dtype=torch.int32, device=query_1NTD.device)
            max_length_q = num_tokens
        value_size = value_1KTD.shape[-1]
        if value_size < head_size:  # latent attention; the kernel wants heads of one size
            value_1KTD = F.pad(value_1KTD, (0, head_size - value_size))
        # Norms and rotary embeddings may leave float32 behind under autocast.
        q, k, v = (t[0].transpose(0, 1).to(dtype) for t in (query_1NTD, key_1KTD, value_1KTD))
        out_TND = varlen(
            q,
            k,
            v,
            cu_seqlens_q=cu_seq_lens_q,
            cu_seqlens_k=cu_seq_lens_q,
            max_seqlen_q=max_length_q,
            max_seqlen_k=max_length_q,
            dropout_p=dropout,
            softmax_scale=scaling,
            causal=_is_causal(module),
            # Its window counts the tokens to the left, ours the token itself too.
            window_size=_window_sides(module, sliding_window),
            softcap=softcap or 0.0,
            deterministic=deterministic,
        )
        return out_TND[None, ..., :value_size], None

    return attend


def _is_causal(module: torch.nn.Module) -> bool:
    """Encoders' layers say that they are not."""
    return bool(getattr(module, "is_causal", True))


def _window_sides(module: torch.nn.Module, sliding_window: int | None) -> tuple[int, int]:
    if sliding_window is None:
        return (-1, -1)
    return (sliding_window - 1, 0 if _is_causal(module) else sliding_window - 1)


def _refuse_sinks(s_aux: Tensor | None) -> None:
    if s_aux is not None:
        raise NotImplementedError("attention sinks are not supported; use a model without them")


def rows_attention(  # noqa: PLR0917  # the interface's signature
    module: torch.nn.Module,
    query_1NTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    row_starts: tuple[int, ...] = (),
    blocks: Blocks | None = None,
    prefix: tuple[tuple[Tensor, Tensor], ...] = (),
    parents: tuple[int, ...] = (),
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within rows, causal but in encoders. Row i is `row_starts[i]:row_starts[i + 1]`; without starts all is
    one row, whose first keys may be of a cache.

    prefix: key and value of each layer, [1, K, P, D], that every row sees before its own. parents: the row before, of
    which each row is the end, and which sees what lies before it likewise; -1 for none (`prefixes.py`).
    Returns [1, T, N, D], as the interface asks. Honours sliding windows, softcapping and `blocks`. Raises
    NotImplementedError for attention sinks.
    """
    _refuse_sinks(s_aux)
    starts, causal = row_starts or (0, query_1NTD.shape[2]), _is_causal(module)
    cached = key_1KTD.shape[2] - query_1NTD.shape[2]
    layer: Any = module
    shared = prefix[layer.layer_idx] if prefix else (key_1KTD[:, :, :cached], value_1KTD[:, :, :cached])
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    # slices would each be given a gradient of all tokens; pieces of one split together get one
    own = (query_1NTD, key_1KTD[:, :, cached:], value_1KTD[:, :, cached:])
    pieces: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    for row, (q, *kv) in enumerate(zip(*(torch.split(t, lengths, dim=2) for t in own), strict=True)):
        before = seen[parents[row]] if parents and parents[row] >= 0 else shared
        num_before, length = before[0].shape[2], lengths[row]
        k, v = _after(before, kv) if num_before else kv
        seen.append((k, v))
        mask_LL = _window(length, sliding_window, q.device, causal=causal, before=num_before)
        if blocks is not None:
            mask_LL = _with_blocks(
                blocks._replace(number_T=blocks.number_T[starts[row] : starts[row + 1]]), sliding_window
            )
        if softcap is not None:
            pieces.append(_softcapped(q, k, v, mask_LL, scaling=scaling, softcap=softcap, dropout=dropout))
            continue
        pieces.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                mask_LL,
                dropout_p=dropout,
                is_causal=causal and mask_LL is None,
                scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    out_1NTD = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
    return out_1NTD.transpose(1, 2).contiguous(), None


def _after(before: tuple[Tensor, Tensor], own: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values of a row behind those of what lies before it."""
    k, v = (torch.cat([first.to(last.dtype), last], dim=2) for first, last in zip(before, own, strict=True))
    return k, v


def shifted(group: int) -> str:
    """Name of `rows_attention` in which, while a model trains, tokens see only their group of `group` tokens of a row,
    half of the heads with groups shifted by half of one. Evaluation sees whole rows.

    Source: LongLoRA, S2-Attn, <https://arxiv.org/abs/2309.12307>; groups do not wrap around the row's end.
    """
    from transformers import AttentionInterface

    def attend(  # noqa: PLR0917  # the interface's signature
        module: torch.nn.Module,
        query_1NTD: Tensor,
        key_1KTD: Tensor,
        value_1KTD: Tensor,
        attention_mask: Tensor | None,
        row_starts: tuple[int, ...] = (),
        **rest: Any,
    ) -> tuple[Tensor, None]:
        starts = row_starts or (0, query_1NTD.shape[2])
        if not module.training:
            return rows_attention(module, query_1NTD, key_1KTD, value_1KTD, None, row_starts=starts, **rest)
        num_heads, num_keys = query_1NTD.shape[1], key_1KTD.shape[1]
        # a key/value head goes with its query heads; a single one serves both halves
        keys = num_keys // 2 or num_keys
        heads = num_heads // 2 if num_keys == 1 else keys * (num_heads // num_keys)
        plain, _ = rows_attention(
            module,
            query_1NTD[:, :heads],
            key_1KTD[:, :keys],
            value_1KTD[:, :keys],
            None,
            row_starts=in_groups(starts, group, 0),
            **rest,
        )
        other, _ = rows_attention(
            module,
            query_1NTD[:, heads:],
            key_1KTD[:, keys % num_keys :],
            value_1KTD[:, keys % num_keys :],
            None,
            row_starts=in_groups(starts, group, group // 2),
            **rest,
        )
        return torch.cat([plain, other], dim=2), None

    name = f"{ROWS}_shifted_{group}"
    AttentionInterface.register(name, attend)
    return name


def in_groups(row_starts: tuple[int, ...], group: int, offset: int) -> tuple[int, ...]:
    """Where pieces of at most `group` tokens of each row start; the first of each row has `offset` if that is not 0."""
    starts: list[int] = []
    for start, end in itertools.pairwise(row_starts):
        starts.append(start)
        starts += range(start + (offset or group), end, group)
    return (*starts, row_starts[-1])


def _window(
    length: int, sliding_window: int | None, device: torch.device, *, causal: bool = True, before: int = 0
) -> Tensor | None:
    """Mask of the tokens less than `sliding_window` away, causal or not; None where all of them are. `before` keys lie
    before the row."""
    if not before and (sliding_window is None or length <= sliding_window):
        return None
    at = torch.arange(before + length, device=device)
    distance_LL = at[before:, None] - at[None, :]
    return (distance_LL.abs() < (sliding_window or before + length)) & ((distance_LL >= 0) | (not causal))


def _with_blocks(blocks: Blocks, window: int | None) -> Tensor:
    """The mask of one row, whose numbers `blocks` has.

    Source: Gemma 3's and PaliGemma's masks in transformers; in the former pictures too end at the window.
    """
    number_L = blocks.number_T
    at = torch.arange(len(number_L), device=number_L.device)
    distance_LL = at[:, None] - at[None, :]
    causal_LL = distance_LL >= 0
    block_LL = (number_L[:, None] == number_L[None, :]) & (number_L[:, None] >= 0)
    near_LL = distance_LL < (len(number_L) if window is None else window)
    return (causal_LL & near_LL) | block_LL if blocks.over_window else (causal_LL | block_LL) & near_LL


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, mask_LL: Tensor | None, *, scaling: float | None, softcap: float, dropout: float
) -> Tensor:
    """Attention with scores capped by softcap * tanh(score / softcap), as in Gemma 2 (<https://arxiv.org/abs/2408.00118>)."""
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    scores_1NLL = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores_1NLL = softcap * torch.tanh(scores_1NLL / softcap)
    if mask_LL is None:
        length = q.shape[2]
        mask_LL = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    weights = scores_1NLL.masked_fill(~mask_LL, float("-inf")).float().softmax(-1).to(q.dtype)
    return F.dropout(weights, dropout) @ v
