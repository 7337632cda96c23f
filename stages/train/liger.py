"""Liger's norm, rotary and SwiGLU kernels in the model that is trained (`--liger`), <https://arxiv.org/abs/2410.10989>.

Modules of this one model are replaced by the three below, which hold the same projections and weights under the same
names: what is saved does not change, and no class of transformers or Liger is touched. Each is a transcription of the
four families' own module around one fused kernel, so the sizes of T tokens' activations are written once, not three to
five times. Liger's functions are taken from their own modules, which no environment variable can replace by others.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from postmill.io.errors import USAGE, ConfigError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose norm, rotary embedding and MLP are those that Liger's kernels compute."""


def check(config: dict[str, Any], device: torch.device) -> None:
    """Raise ConfigError (2) if a model with this `config.json` cannot have Liger's kernels on `device`."""
    if device.type != "cuda":
        raise ConfigError(f"--liger: its kernels need a CUDA GPU, the device is {device.type}; leave it out", USAGE)
    if importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError("--liger: liger-kernel is not installed; pip install 'postmill[gpu]', or leave it out", USAGE)
    family, activation = config.get("model_type"), config.get("hidden_act", "silu")
    if family not in FAMILIES:
        raise ConfigError(f"--liger: the model is a {family}, expected {', '.join(FAMILIES)}; leave it out", USAGE)
    if activation not in ("silu", "swish"):
        raise ConfigError(f"--liger: hidden_act is {activation}, expected silu; leave it out", USAGE)


def use_liger(model: Any) -> None:
    """Replace norms, attention and MLPs of a causal language model of one of FAMILIES, before an adapter is added."""
    decoder = model.get_decoder()
    decoder.norm = Norm(decoder.norm)
    for layer in decoder.layers:
        layer.input_layernorm = Norm(layer.input_layernorm)
        layer.post_attention_layernorm = Norm(layer.post_attention_layernorm)
        layer.self_attn = Attention(layer.self_attn)
        layer.mlp = Mlp(layer.mlp)


class Norm(nn.Module):
    """x / rms(x) * weight: the mean of squares in float32, the product with the weight in x's dtype, which it returns.

    Its backward pass writes over the gradient it is given, as Liger does for these families: no norm's output is
    added to a residual, so nobody else holds that gradient.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.weight = plain.weight
        self.variance_epsilon = plain.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        out: Tensor = LigerRMSNormFunction.apply(hidden, self.weight, self.variance_epsilon, 0.0, "llama", True, None)
        return out


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x)); the product is not kept for the backward pass but computed again."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = plain.gate_proj, plain.up_proj, plain.down_proj

    def forward(self, hidden: Tensor) -> Tensor:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        out: Tensor = self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(hidden), self.up_proj(hidden), 1.0, 1.0))
        return out


class Attention(nn.Module):
    """The families' attention, with queries and keys rotated in place by one kernel."""

    def __init__(self, plain: Any) -> None:
        from transformers import AttentionInterface

        super().__init__()
        interface = AttentionInterface()  # type: ignore[no-untyped-call]
        self._attend = interface[plain.config._attn_implementation]
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = plain.q_proj, plain.k_proj, plain.v_proj, plain.o_proj
        has_norms = hasattr(plain, "q_norm")
        self.q_norm = Norm(plain.q_norm) if has_norms else nn.Identity()
        self.k_norm = Norm(plain.k_norm) if has_norms else nn.Identity()
        self.config, self.layer_idx, self.is_causal = plain.config, plain.layer_idx, True
        self.head_dim, self.scaling, self.dropout = plain.head_dim, plain.scaling, plain.attention_dropout
        # of the layer where layers differ, else of the model
        of_model = getattr(plain.config, "sliding_window", None)
        self.sliding_window = getattr(plain, "sliding_window", of_model)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [1, T, H]; position_embeddings: cosines and sines, [1, T, head size] each."""
        from liger_kernel.ops.rope import LigerRopeFunction

        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query, key = LigerRopeFunction.apply(query, key, *position_embeddings)
        found, _ = self._attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **rest,
        )
        return self.o_proj(found.reshape(*hidden_states.shape[:-1], -1)), None
