"""The head of a language model: what the loss kernel is given of it, and what it says of a batch's tokens.

The full logits never exist. Shape letters: T tokens, N scored tokens, H hidden size, V vocabulary, K entries.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.kernels.gather_logits import gather_logits
from postmill.kernels.loss_scale_ce.api import Backend, loss_scale_ce
from postmill.kernels.loss_scale_ce.terms import LossOutput
from postmill.kernels.loss_scale_ce.vocab_parallel import loss_scale_ce_vocab_parallel
from postmill.stages.shared import top
from postmill.stages.shared.asked import Ask, Linear
from postmill.stages.shared.batch import Batch
from postmill.stages.shared.vocab import is_slice, sliced_head, whole_head


class HeadScale(NamedTuple):
    """What lies between the head's matrix product and the softmax."""

    logit_scale: float = 1.0
    softcap: float | None = None


def head_scale(config: Any) -> HeadScale:
    """From a model's config: the softcap of Gemma, RecurrentGemma and xLSTM, factors of Cohere, Granite, T5."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    if getattr(config, "scale_decoder_outputs", False):
        scale *= float(config.d_model) ** -0.5
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    softcap = next((cap for name in caps if (cap := getattr(text, name, None))), None)
    return HeadScale(scale, float(softcap) if softcap else None)


class LmHead:
    """The head of `model`, computed in `dtype` by the loss kernel's `backend`."""

    def __init__(self, model: Any, dtype: torch.dtype, backend: Backend) -> None:
        self._model, self._dtype, self.backend = model, dtype, backend
        self.scale = head_scale(model.config)

    def numbers(self, hidden_TH: Tensor, batch: Batch, ask: Ask, *, is_training: bool) -> LossOutput:
        """The linear loss and the numbers that are asked for; `hidden_TH` and `batch` are of the same slice."""
        linear, stats = ask.linear, ask.stats
        if linear is None:
            linear = Linear(torch.zeros_like(batch.weights_T), 1.0)
        options: dict[str, Any] = {
            "targets_T": batch.targets_T,
            "token_weights_T": linear.weights_T,
            "normaliser": linear.normaliser,
            "label_smoothing": linear.label_smoothing if is_training else 0.0,
            "temperature": ask.temperature,
            "active_T": batch.mask_T if stats else None,
            "backend": self.backend,
            "return_logp": "logp" in stats,
            "return_entropy": "entropy" in stats,
            "return_correct": "correct" in stats,
            "return_lse": "lse" in stats,
        }
        head = self.of(hidden_TH)
        if is_slice(head["weight_VH"]) and "collision" not in stats:
            return loss_scale_ce_vocab_parallel(**sliced_head(head), **options)
        return loss_scale_ce(**whole_head(head), **options, return_collision="collision" in stats)

    def top(
        self, hidden_TH: Tensor, mask_T: Tensor, ask: Ask, lse_T: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Log-probs of some entries of the vocabulary at scored tokens, and which the likeliest are."""
        if ask.top_ids_TK is None and not ask.num_top:
            return None, None
        at_N = mask_T.nonzero().squeeze(-1)
        head = top.HeadOf(**self.of(hidden_TH[at_N]))
        if ask.top_ids_TK is not None:
            assert lse_T is not None
            logp_NK = top.of_entries(head, ask.top_ids_TK[at_N], lse_T[at_N], ask.temperature)
            return logp_NK.new_zeros(ask.top_ids_TK.shape).index_copy(0, at_N, logp_NK), None
        logp_NK, ids_NK = top.likeliest(head, ask.num_top, ask.temperature)
        empty_TK = logp_NK.new_zeros(len(hidden_TH), ask.num_top)
        return empty_TK.index_copy(0, at_N, logp_NK), empty_TK.long().index_copy(0, at_N, ids_NK)

    def between(self, hidden_RH: Tensor, answers: tuple[int, int]) -> Tensor:
        """[R, 1] float32: the logit of the first of two entries of the vocabulary, less that of the second. Its sigmoid
        is the probability of the first among both."""
        head = top.HeadOf(**whole_head(self.of(hidden_RH)))
        ids_R2 = torch.tensor([answers], device=hidden_RH.device).expand(len(hidden_RH), 2).contiguous()
        logits_R2 = gather_logits(head.hidden_TH, head.weight_VH, ids_R2, head.bias_V)
        scaled_R2 = head.scaled(logits_R2, 1.0).float()
        return scaled_R2[:, :1] - scaled_R2[:, 1:]

    def of(self, hidden_TH: Tensor) -> dict[str, Any]:
        """What the loss kernel is given of the head."""
        head, dtype = self._model.get_output_embeddings(), self._dtype
        bias = getattr(head, "bias", None)
        # peft's layer of trained tokens, on a head that is tied: its own weight is the base's
        trained = getattr(head, "get_merged_weights", None)
        weight_VH = trained(head.active_adapters) if trained else head.weight
        return {
            "hidden_TH": hidden_TH.to(dtype),
            "weight_VH": weight_VH.to(dtype),
            "bias_V": None if bias is None else bias.to(dtype),
            "logit_scale": self.scale.logit_scale,
            "softcap": self.scale.softcap,
        }
