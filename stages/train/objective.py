"""The model with its loss head as one module, so that the launcher's wrappers (DDP) see one forward pass."""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from postmill.kernels.loss_scale_ce.api import Backend, loss_scale_ce
from postmill.kernels.loss_scale_ce.terms import LossOutput
from postmill.stages.train.batch import Batch


class HeadScale(NamedTuple):
    """What lies between the head's matrix product and the softmax."""

    logit_scale: float = 1.0
    softcap: float | None = None


def head_scale(config: Any) -> HeadScale:
    """From a model's config: Gemma's softcap, Cohere's multiplier, Granite's divisor."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    softcap = getattr(text, "final_logit_softcapping", None)
    return HeadScale(scale, float(softcap) if softcap else None)


class Objective(nn.Module):
    """Weighted cross-entropy of a causal language model on a `Batch`; the full logits never exist."""

    def __init__(
        self,
        model: nn.Module,
        *,
        compute_dtype: torch.dtype,
        backend: Backend,
        label_smoothing: float = 0.0,
        neftune_alpha: float = 0.0,
    ) -> None:
        """`model` is a transformers causal language model, adapters injected or not."""
        super().__init__()
        self.model: Any = model
        self._compute_dtype = compute_dtype
        self._backend, self._label_smoothing, self._neftune_alpha = backend, label_smoothing, neftune_alpha
        self._scale = head_scale(self.model.config)

    def forward(self, batch: Batch, denominator: float, *, want_logp: bool = False) -> LossOutput:
        """Loss of `batch`: sum of weight * nll / denominator; with `want_logp`, each target's log-probability too."""
        device_type = batch.input_ids_1T.device.type
        with torch.autocast(device_type, self._compute_dtype, enabled=self._compute_dtype == torch.bfloat16):
            hidden_TH = self._hidden(batch)
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return loss_scale_ce(
            hidden_TH.to(self._compute_dtype),
            head.weight.to(self._compute_dtype),
            batch.targets_T,
            batch.weights_T,
            denominator=denominator,
            bias_V=None if bias is None else bias.to(self._compute_dtype),
            logit_scale=self._scale.logit_scale,
            softcap=self._scale.softcap,
            label_smoothing=self._label_smoothing if self.training else 0.0,
            backend=self._backend,
            return_logp=want_logp,
        )

    def own_logits(self, ids_1T: Tensor) -> Tensor:
        """What the model itself says of one row, [1, T, V]: to compare with."""
        logits: Tensor = self.model(input_ids=ids_1T, use_cache=False).logits
        return logits

    def _hidden(self, batch: Batch) -> Tensor:
        """Last hidden states, [T, H], each row for itself."""
        decoder = self.model.get_decoder()
        starts = torch.tensor(batch.row_starts, dtype=torch.int32, device=batch.input_ids_1T.device)
        longest = max(end - start for start, end in itertools.pairwise(batch.row_starts))
        inputs: dict[str, Tensor] = {"input_ids": batch.input_ids_1T}
        if self.training and self._neftune_alpha:
            inputs = {"inputs_embeds": self._noisy_embeddings(batch)}
        found = decoder(
            **inputs,
            position_ids=batch.position_ids_1T,
            use_cache=False,
            cu_seq_lens_q=starts,
            cu_seq_lens_k=starts,
            max_length_q=longest,
            max_length_k=longest,
            row_starts=batch.row_starts,
        )
        hidden: Tensor = found.last_hidden_state
        return hidden[0]

    def _noisy_embeddings(self, batch: Batch) -> Tensor:
        """Embeddings plus uniform noise of width alpha / sqrt(row length * H), <https://arxiv.org/abs/2310.05914>."""
        embeddings: Tensor = self.model.get_input_embeddings()(batch.input_ids_1T)
        lengths = torch.tensor(batch.row_starts, device=embeddings.device).diff()
        length_T = torch.repeat_interleave(lengths, lengths).to(embeddings.dtype)
        width_T1 = self._neftune_alpha / torch.sqrt(length_T * embeddings.shape[-1])[:, None]
        return embeddings + torch.empty_like(embeddings).uniform_(-1, 1) * width_T1
