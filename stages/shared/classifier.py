"""Heads other than the language model's, on the last hidden states of rows that are laid end to end.

Shape letters: T tokens, H hidden size, R rows, N points, C outputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.stages.shared.batch import Batch
from postmill.stages.shared.heads import Pooling


def read_points(model: Any, batch: Batch) -> Tensor:
    """int64 [R]: the token of each row that transformers' sequence classifiers read.

    Encoders read the first. Decoders read the last that is not the config's `pad_token_id`, even where that id ends a
    row as its end of turn.
    """
    starts = torch.tensor(batch.row_starts, device=batch.row_T.device)
    if not hasattr(model, "score"):
        return starts[:-1]
    pad = model.config.get_text_config().pad_token_id
    if pad is None:
        return starts[1:] - 1
    at_T = torch.arange(len(batch.row_T), device=batch.row_T.device)
    real_T = torch.where(batch.input_ids_1T[0] != pad, at_T, -1)
    last_R = torch.full_like(starts[:-1], -1).scatter_reduce(0, batch.row_T, real_T, "amax")
    return torch.maximum(last_R, starts[:-1])


def _bert(model: Any, hidden_NH: Tensor) -> Tensor:
    values: Tensor = model.classifier(model.dropout(model.base_model.pooler(hidden_NH[:, None])))
    return values


def _roberta(model: Any, hidden_NH: Tensor) -> Tensor:
    values: Tensor = model.classifier(hidden_NH[:, None])
    return values


def _distilbert(model: Any, hidden_NH: Tensor) -> Tensor:
    values: Tensor = model.classifier(model.dropout(torch.relu(model.pre_classifier(hidden_NH))))
    return values


def _modernbert(model: Any, hidden_NH: Tensor) -> Tensor:
    values: Tensor = model.classifier(model.drop(model.head(hidden_NH)))
    return values


_ENCODERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
}
"""What lies between an encoder's first token and its classes, by model type."""


def sequence_values(model: Any, hidden_TH: Tensor, batch: Batch) -> Tensor:
    """[R, C] float32. Raises ArtifactError (78) for an encoder whose head we do not know."""
    if hasattr(model, "score"):
        return _called(model.score, model.score, hidden_TH[read_points(model, batch)])
    kind = model.config.model_type
    if kind not in _ENCODERS:
        raise ArtifactError(f"{kind}: no classifier for this family; there are {', '.join(_ENCODERS)}", MISMATCH)
    if getattr(model.config, "classifier_pooling", "cls") == "mean":
        hidden_RH = pooled(hidden_TH, batch, "mean")
    else:
        hidden_RH = hidden_TH[read_points(model, batch)]
    return _called(lambda hidden: _ENCODERS[kind](model, hidden), model.classifier, hidden_RH)


def token_values(model: Any, hidden_NH: Tensor) -> Tensor:
    """[N, C] float32, with the dropout that the model has before its classifier."""
    layer = model.score if hasattr(model, "score") else model.classifier
    return _called(layer, layer, model.dropout(hidden_NH) if hasattr(model, "dropout") else hidden_NH)


def pooled(hidden_TH: Tensor, batch: Batch, pooling: Pooling) -> Tensor:
    """[R, H] float32, not normalised."""
    starts = torch.tensor(batch.row_starts, device=hidden_TH.device)
    if pooling == "mean":
        hidden = hidden_TH.float()
        sums_RH = hidden.new_zeros(len(starts) - 1, hidden.shape[1]).index_add(0, batch.row_T, hidden)
        return sums_RH / starts.diff()[:, None]
    return hidden_TH[starts[1:] - 1 if pooling == "last" else starts[:-1]].float()


def _called(head: Callable[[Tensor], Tensor], layer: Any, hidden_NH: Tensor) -> Tensor:
    """The head in the number type of its own weights; the last ones of a layer that peft wrapped are the trained."""
    *_, weight = layer.parameters()
    return head(hidden_NH.to(weight.dtype)).float()
