"""What a model's folder holds that training neither reads nor saves: a head that predicts several tokens ahead.

DeepSeek, MiMo, GLM, Qwen3-Next and others store such layers behind the last one, or under `mtp`; transformers leaves
them out when it loads the model. They are said by name, since a whole model that is trained lacks them afterwards.
"""

import re
from pathlib import Path

from postmill.io.json_file import load_json
from postmill.io.safetensors_file import open_weights
from postmill.stages.progress import Progress

_NAMED = re.compile(r"(^|\.)(mtp\w*|nextn\w*)\.")
_LAYER = re.compile(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)\.")


def mtp_tensors(folder: Path) -> list[str]:
    """Names of the tensors of such a head, sorted."""
    if not any(folder.glob("*.safetensors")):
        return []
    config = load_json(folder / "config.json")
    text = config.get("text_config") or config
    layers = text.get("num_hidden_layers")
    found = []
    with open_weights(folder) as weights:
        for name in weights.where:
            layer = _LAYER.match(name)
            is_behind = layer is not None and layers is not None and int(layer[1]) >= int(layers)
            if is_behind or _NAMED.search(name):
                found.append(name)
    return sorted(found)


def say_left_out(folder: Path, makes: str) -> None:
    """Warn, once, that the head for several tokens is not trained."""
    found = mtp_tensors(folder)
    if not found:
        return
    fate = (
        "is not in the result: draft with another model, or train an adapter"
        if makes == "model"
        else "stays as it is, so its drafts fit the trained model less well"
    )
    Progress.warn(
        "train",
        f"{folder.name} has a head that predicts several tokens ({len(found)} tensors, like {found[0]}); it is not"
        f" trained, and {fate}",
    )
