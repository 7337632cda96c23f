"""Causal attention of packed tokens over keys and values in pages: the reference in torch, and C++ for the CPU.

Tokens of many requests lie in one row. Token t belongs to request `owner[t]`, whose pages `table[owner[t]]` lists, and
sees positions `first[t]` to `length[t] - 1`. In C++ the result for a token does not depend on the tokens beside it, bit
for bit. Letters: T tokens, H query heads, G key heads, D head size, P pages, S = 16 positions of a page, R requests, W
pages of one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from postmill.kernels.packed_linear import native, num_threads

PAGE = 16
"""Positions of a page."""
_LANES = 16


class Places(NamedTuple):
    """Where the tokens of a step look: int32, on the device of the keys."""

    table_RW: Tensor
    owner_T: Tensor
    first_T: Tensor
    length_T: Tensor


def padded_dim(dim: int) -> int:
    """Size that a head has in the pages: a whole number of vectors."""
    return -(-dim // _LANES) * _LANES


def paged_attention(
    q_THD: Tensor, keys_PSGD: Tensor, values_PSGD: Tensor, places: Places, *, scale: float, softcap: float = 0.0
) -> Tensor:
    """[T, H, D] in the dtype of q. D of keys and values is the same, a multiple of 16; q's may be padded with zeros."""
    kernels = native()
    if q_THD.device.type != "cpu" or q_THD.dtype != torch.float32 or kernels is None:
        return paged_attention_reference(q_THD, keys_PSGD, values_PSGD, places, scale=scale, softcap=softcap)
    q_THD = q_THD.contiguous()
    out_THD = torch.empty_like(q_THD)
    num_tokens, num_heads, dim = q_THD.shape
    kernels.paged_attention(
        q_THD.data_ptr(),
        keys_PSGD.data_ptr(),
        values_PSGD.data_ptr(),
        *(part.data_ptr() for part in places),
        out_THD.data_ptr(),
        num_tokens,
        places.table_RW.shape[1],
        num_heads,
        keys_PSGD.shape[2],
        dim,
        scale,
        softcap,
        num_threads(int(places.length_T.sum()) * num_heads * dim),
        4,
    )
    return out_THD


def paged_attention_reference(
    q_THD: Tensor, keys_PSGD: Tensor, values_PSGD: Tensor, places: Places, *, scale: float, softcap: float = 0.0
) -> Tensor:
    """The same in plain torch, request by request, with sums in the dtype of q or better."""
    out_THD = torch.empty_like(q_THD)
    groups, dim = keys_PSGD.shape[2:]
    for request in sorted(set(places.owner_T.tolist())):
        at_t = (places.owner_T == request).nonzero()[:, 0]
        most = int(places.length_T[at_t].max())
        pages = places.table_RW[request, : -(-most // PAGE)].long()
        keys_LGD = keys_PSGD[pages].reshape(-1, groups, dim)[:most]
        values_LGD = values_PSGD[pages].reshape(-1, groups, dim)[:most]
        repeats = q_THD.shape[1] // groups
        keys_HLD = keys_LGD.transpose(0, 1).repeat_interleave(repeats, 0)
        values_HLD = values_LGD.transpose(0, 1).repeat_interleave(repeats, 0)
        score_HtL = (q_THD[at_t].transpose(0, 1) @ keys_HLD.transpose(1, 2)).float() * scale
        if softcap:
            score_HtL = softcap * (score_HtL / softcap).tanh()
        place_L = torch.arange(most, device=q_THD.device)
        is_hidden_tL = (place_L >= places.length_T[at_t, None]) | (place_L < places.first_T[at_t, None])
        share_HtL = score_HtL.masked_fill(is_hidden_tL, -torch.inf).softmax(-1).to(q_THD.dtype)
        out_THD[at_t] = (share_HtL @ values_HLD).transpose(0, 1)
    return out_THD
