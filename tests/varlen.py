"""flash-attn's varlen function in plain torch: its signature (2.8), its checks of arguments, and its masks."""

import itertools

import torch


def varlen_attention(  # the signature of flash_attn_varlen_func
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """q [T, N, D], k and v [T, K, D] with N a multiple of K: attention of each sequence alone, [T, N, D]."""
    assert q.dtype == k.dtype == v.dtype
    assert all(t.ndim == 3 and t.stride(-1) == 1 and t.shape[-1] == q.shape[-1] for t in (q, k, v))
    for bounds, longest, tokens in ((cu_seqlens_q, max_seqlen_q, q), (cu_seqlens_k, max_seqlen_k, k)):
        assert bounds.dtype == torch.int32 and bounds.is_contiguous() and bounds.device == tokens.device
        assert bounds[0] == 0 and bounds[-1] == len(tokens)
        assert type(longest) is int and longest == bounds.diff().max()
    assert alibi_slopes is None and block_table is None and not return_attn_probs and dropout_p == 0
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    left, right = window_size
    pieces = []
    for start, end in itertools.pairwise(cu_seqlens_q.tolist()):
        scores_NLL = torch.einsum("qnd,knd->nqk", q[start:end], k[start:end]) * scale
        if softcap:
            scores_NLL = softcap * torch.tanh(scores_NLL / softcap)
        behind_LL = torch.arange(end - start)[:, None] - torch.arange(end - start)[None, :]
        barred_LL = torch.zeros_like(behind_LL, dtype=torch.bool)
        if causal or right >= 0:
            barred_LL |= behind_LL < (0 if causal else -right)
        if left >= 0:
            barred_LL |= behind_LL > left
        weights_NLL = scores_NLL.masked_fill(barred_LL, float("-inf")).softmax(-1)
        pieces.append(torch.einsum("nqk,knd->qnd", weights_NLL, v[start:end]))
    return torch.cat(pieces)
