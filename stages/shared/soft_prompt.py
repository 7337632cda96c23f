"""Vectors that stand before every row: as embeddings of tokens that do not exist, or as keys and values of each layer.

What comes out is of the real tokens only, so losses, weights and masks know nothing of it; positions count from the
first vector on, as PEFT's do. Letters: P vectors, T tokens, H hidden size, K key/value heads, D head size.
"""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Longer(NamedTuple):
    """A decoder's inputs with vectors before the rows, and where the real tokens are."""

    inputs: dict[str, Any]
    positions: Tensor
    row_starts: tuple[int, ...]
    real_T: Tensor | slice


class SoftPrompt(nn.Module):
    """The trained part of a PEFT model of prompt tuning, p-tuning or prefix tuning."""

    def __init__(self, net: Any) -> None:
        """`net` is PEFT's; its trained part becomes a part of this module."""
        super().__init__()
        config = net.peft_config["default"]
        self.encoder = net.prompt_encoder["default"]
        self.length = int(config.num_virtual_tokens)
        self._is_keys = config.peft_type == "PREFIX_TUNING"
        if self._is_keys:
            self._shape = (self.length, config.num_layers, 2, config.num_attention_heads, -1)

    def vectors(self) -> Tensor:
        """What the encoder makes, [P, numbers]."""
        index_1P = torch.arange(self.length, device=self.encoder.embedding.weight.device)[None]
        found: Tensor = self.encoder(index_1P)[0]
        return found

    def before_rows(
        self, embedding: nn.Module, ids_1T: Tensor, row_starts: tuple[int, ...], positions: Tensor
    ) -> Longer:
        """What the decoder is given for rows that lie end to end."""
        vectors = self.vectors()
        if self._is_keys:
            return Longer(
                {"input_ids": ids_1T, "prefix": self._keys(vectors)}, positions + self.length, row_starts, slice(None)
            )
        embedded_TH = embedding(ids_1T)[0]
        vectors_PH = vectors.to(embedded_TH.dtype)
        pieces, place = [], []
        starts, at = [0], 0
        for start, end in itertools.pairwise(row_starts):
            pieces += [vectors_PH, embedded_TH[start:end]]
            place.append(torch.arange(at + self.length, at + self.length + end - start))
            at += self.length + end - start
            starts.append(at)
        count = torch.cat([torch.arange(end - start) for start, end in itertools.pairwise(starts)])
        return Longer(
            {"inputs_embeds": torch.cat(pieces)[None]},
            count[None].to(ids_1T.device),
            tuple(starts),
            torch.cat(place).to(ids_1T.device),
        )

    def _keys(self, vectors: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Key and value of each layer, [1, K, P, D]."""
        parts = vectors.view(self._shape).permute(1, 2, 3, 0, 4)
        return tuple((layer[0][None], layer[1][None]) for layer in parts)

    def own_logits(self, model: Any, ids_1T: Tensor) -> Tensor:
        """What the model itself says of one row, [1, T, V]: by a cache that holds the keys, or by longer input."""
        vectors = self.vectors()
        if self._is_keys:
            from transformers import DynamicCache

            dtype = model.get_input_embeddings().weight.dtype
            cache = DynamicCache()
            for number, (key, value) in enumerate(self._keys(vectors.to(dtype))):
                cache.update(key, value, number)
            positions = torch.arange(ids_1T.shape[1], device=ids_1T.device)[None] + self.length
            logits: Tensor = model(
                input_ids=ids_1T, past_key_values=cache, position_ids=positions, use_cache=True
            ).logits
            return logits
        embedded_1TH = model.get_input_embeddings()(ids_1T)
        longer = torch.cat([vectors[None].to(embedded_1TH.dtype), embedded_1TH], dim=1)
        logits = model(inputs_embeds=longer, use_cache=False).logits[:, self.length :]
        return logits
