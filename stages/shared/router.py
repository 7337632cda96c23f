"""The routers of a mixture of experts: the loss that keeps experts evenly used, and how strongly a model wants it."""

from typing import Any

import torch
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError


def router_balance(logits_by_layer: tuple[Tensor, ...], num_chosen: int) -> Tensor:
    """How unevenly routers use their experts: E * sum over e of (share of tokens sent to e) * (mean probability of e).

    logits_by_layer: [T, E] for each layer; all layers' tokens are taken together, as transformers does. num_chosen:
    experts a token goes to; with all equal the value is num_chosen. Source: Switch Transformers, section 2.2,
    <https://arxiv.org/abs/2101.03961>.
    """
    probability_NE = torch.cat([logits.reshape(-1, logits.shape[-1]) for logits in logits_by_layer]).float().softmax(-1)
    num_tokens, num_experts = probability_NE.shape
    chosen = probability_NE.topk(num_chosen, dim=-1).indices.reshape(-1)
    share_E = torch.bincount(chosen, minlength=num_experts).to(probability_NE.dtype) / num_tokens
    return num_experts * (share_E * probability_NE.mean(0)).sum()


def router_coefficient(config: Any, wanted: float | None) -> float:
    """`wanted`, or what the model's config asks for where it asks for it. Raises ConfigError (2) without routers."""
    text = config.get_text_config()
    has_routers = getattr(text, "num_experts_per_tok", None) is not None and hasattr(text, "router_aux_loss_coef")
    if wanted and not has_routers:
        raise ConfigError(f"--router-aux {wanted}: the model has no routers to balance; leave it out", USAGE)
    if wanted is not None or not has_routers:
        return wanted or 0.0
    return float(text.router_aux_loss_coef) if getattr(text, "output_router_logits", False) else 0.0
