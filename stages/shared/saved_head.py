"""Which head a model or adapter on disk has: what training wrote down, what sentence-transformers did, its class."""

from pathlib import Path
from typing import Any

import msgspec

from postmill.io.errors import ArtifactError
from postmill.io.json_file import load_json
from postmill.io.model_folder import TRAINING
from postmill.stages.shared.heads import LM, Head, Pooling

_MODES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last", "last": "last"}
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


def find_head(model: Path, adapter: Path | None = None) -> Head:
    """The head of the model in `model`, with the adapter in `adapter` on it.

    Raises ArtifactError (65) for a record of a head that cannot be read.
    """
    for folder in (adapter, model):
        said = recorded_head(folder) if folder is not None else None
        if said is not None:
            return said
    pooling = _sentence_transformers(model)
    if pooling is not None:
        return Head(kind="pool", pooling=pooling)
    config = load_json(model / "config.json")
    name = (config.get("architectures") or [""])[0]
    if name.endswith("ForSequenceClassification"):
        return Head(kind="sequence", outputs=_outputs(config))
    if name.endswith("ForTokenClassification"):
        return Head(kind="token", outputs=_outputs(config))
    return LM


def recorded_head(folder: Path) -> Head | None:
    """What training wrote of it beside its result; None for the language model's own. Raises ArtifactError (65)."""
    if not (folder / TRAINING).is_file():
        return None
    said = load_json(folder / TRAINING).get("head")
    try:
        return None if said is None else msgspec.convert(said, Head)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{folder / TRAINING}: head: {error}; train again") from None


def _sentence_transformers(folder: Path) -> Pooling | None:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    config = load_json(path)
    if isinstance(config.get("pooling_mode"), str):
        return _MODES.get(config["pooling_mode"])
    return next((pooling for flag, pooling in _FLAGS.items() if config.get(flag)), None)


def _outputs(config: dict[str, Any]) -> int:
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else int(config.get("num_labels", 2))
