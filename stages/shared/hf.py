"""Models and tokenizers through transformers: from disk only, no code from the folder, no talk."""

import importlib
import warnings
from pathlib import Path
from typing import Any

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.stages.shared.heads import AUTO_CLASS, LM, Head


def need(*packages: str, remedy: str) -> dict[str, str]:
    """Import packages and return their versions. Raises ConfigError (2) naming the one that is not installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = str(importlib.import_module(package).__version__)
        except ImportError:
            raise ConfigError(f"{package} is not installed; {remedy}", USAGE) from None
    return versions


def _transformers() -> Any:
    module: Any = importlib.import_module("transformers")
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


def load_model(path: Path, dtype: str, *, attention: str | None = None, head: Head = LM) -> Any:
    """The model in `path` with the class its config names, or the one that `head` needs; weights as `dtype`, in
    evaluation mode on the CPU.

    attention: name of the implementation; transformers' own choice without it.
    """
    transformers = _transformers()
    torch: Any = importlib.import_module("torch")
    named = (load_json(path / "config.json").get("architectures") or [""])[0]
    kind = getattr(transformers, named, transformers.AutoModelForCausalLM)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if head.kind != "lm":
        kind = getattr(transformers, AUTO_CLASS[head.kind])
        options |= {} if head.kind == "pool" else {"num_labels": head.outputs}
    return kind.from_pretrained(path, dtype=getattr(torch, dtype), local_files_only=True, **options).eval()


def build_empty(path: Path) -> Any:
    """The model in `path` without weights, on the meta device; buffers that are computed, not stored, are real."""
    accelerate: Any = importlib.import_module("accelerate")
    transformers = _transformers()
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    config.quantization_config = None
    named = (load_json(path / "config.json").get("architectures") or [""])[0]
    kind = getattr(transformers, named, None)
    with accelerate.init_empty_weights(include_buffers=False):
        model = kind(config) if kind else transformers.AutoModelForCausalLM.from_config(config)
    return model.eval()


def add_adapters(model: Any, adapters: dict[Path, float]) -> Any:
    """The model with every adapter (path -> scale) active."""
    peft: Any = importlib.import_module("peft")
    lora: Any = importlib.import_module("peft.tuners.lora")
    # peft asks transformers in a way that this warns of; nobody here can change that
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    scales = {f"adapter{index}": scale for index, scale in enumerate(adapters.values())}
    first, *others = zip(scales, adapters, strict=True)
    wrapped = peft.PeftModel.from_pretrained(model, str(first[1]), adapter_name=first[0], local_files_only=True)
    for name, path in others:
        wrapped.load_adapter(str(path), name, local_files_only=True)
    wrapped.base_model.set_adapter(list(scales))
    for module in wrapped.modules():
        if isinstance(module, lora.LoraLayer):
            for name in [name for name, scale in scales.items() if scale != 1 and name in module.scaling]:
                module.set_scale(name, scales[name])
    return wrapped.eval()


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in `path`, with its chat template."""
    return _transformers().AutoTokenizer.from_pretrained(path, local_files_only=True)


def vocab_size(path: Path) -> int | None:
    """Rows of the model's embedding, as its config says."""
    config = load_json(path / "config.json")
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    return size if isinstance(size, int) else None
