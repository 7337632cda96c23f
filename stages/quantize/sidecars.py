"""What the quantized model's folder holds beside its weights: all that the source's does, and a word on the bits."""

import json
import shutil
from pathlib import Path
from typing import Any

from postmill.io.json_file import load_json
from postmill.io.model_folder import model_files, tokenizer_files
from postmill.io.safetensors_file import INDEX
from postmill.stages.shared.parity import REPORT


def write_sidecars(source: Path, target: Path, quantization: dict[str, Any]) -> None:
    """Copy tokenizer, template and configs into `target`; config.json says how the weights are stored."""
    names = dict(model_files(source))
    if (source / "tokenizer.json").is_file():
        names |= tokenizer_files(source)
    for name, path in names.items():
        if path.suffix not in (".safetensors", ".gguf") and name not in ("config.json", INDEX, REPORT):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)
    config = load_json(source / "config.json") | {"quantization_config": quantization}
    (target / "config.json").write_bytes(json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")
