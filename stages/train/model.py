"""Loading a model, giving it a tuner, and naming what is trained."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.stages.shared.heads import AUTO_CLASS, CLASSIFIERS, PEFT_TASK
from postmill.stages.train.config import Train
from postmill.stages.train.liger import use_liger
from postmill.stages.train.tuners.lora import Lora

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_dtype(cfg: Train, device: torch.device) -> torch.dtype:
    """What matrices are multiplied in."""
    if cfg.compute.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return _DTYPES[cfg.compute.dtype]


def stored_dtype(cfg: Train, base: Path) -> torch.dtype:
    """What a full model is saved in."""
    config = load_json(base / "config.json")
    name = (
        str(config.get("dtype") or config.get("torch_dtype"))
        if cfg.compute.save_dtype == "auto"
        else cfg.compute.save_dtype
    )
    return _DTYPES.get(name, torch.float32)


def load_base(path: Path, dtype: torch.dtype, attention: str, cfg: Train) -> Any:
    """The model in `path` with the head that the objective asks for, on the CPU; a head that is not there is drawn from
    `cfg.seed`. Never runs code from the folder.

    Raises ArtifactError (78) for a family whose attention is its own, or a head of another size.
    """
    import transformers

    head = cfg.objective.needs.head
    labels = {"num_labels": head.outputs} if head.kind in ("sequence", "token") else {}
    torch.manual_seed(cfg.seed)
    with quiet_libraries():
        try:
            model = getattr(transformers, AUTO_CLASS[head.kind]).from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                local_files_only=True,
                **labels,
            )
        except KeyError as error:
            if error.args != (attention,):
                raise
            family = load_json(path / "config.json").get("model_type")
            raise ArtifactError(
                f"{path}: {family} models compute attention in a way of their own, which cannot keep the rows of a bin"
                " apart; train a model of another family",
                MISMATCH,
            ) from None
        except RuntimeError as error:
            if not labels or "size mismatch" not in str(error):
                raise
            raise ArtifactError(
                f"{path}: its classifier does not give {head.outputs} numbers; train from the base model, or ask for as"
                " many as it has",
                MISMATCH,
            ) from None
    if getattr(model, "pooler", None) is not None:
        model.pooler.requires_grad_(False)  # nobody reads what it gives, and ranks wait for every gradient
    if cfg.compute.liger:
        use_liger(model)
    return model


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers' and peft's notices to themselves: stderr is for what a user can act on."""
    import transformers

    logging: Any = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, UserWarning, RuntimeWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def full_model(path: Path, attention: str, cfg: Train) -> Any:
    """A model all of whose weights are trained, in float32."""
    return load_base(path, torch.float32, attention, cfg)


def lora_model(path: Path, cfg: Train, compute: torch.dtype, attention: str) -> Any:
    """A peft model: the base frozen in the compute dtype, adapters in float32, drawn from `cfg.seed`."""
    from peft import LoraConfig, get_peft_model

    base = load_base(path, compute, attention, cfg)
    lora: Lora = cfg.tuner
    torch.manual_seed(cfg.seed)
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft scales by a float as well
        lora_dropout=lora.dropout,
        target_modules=lora_targets(base, lora),
        modules_to_save=whole_modules(base, lora) or None,
        exclude_modules=r".*\bpooler\b.*" if cfg.objective.needs.head.kind == "pool" else None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type=PEFT_TASK[cfg.objective.needs.head.kind],
    )
    with quiet_libraries():
        model = get_peft_model(base, adapter)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def lora_targets(base: Any, lora: Lora) -> list[str]:
    """Last parts of the names of the modules that get an adapter, sorted.

    Raises ConfigError (2) for a name that no module has, or for the head: its adapter would hide from the fused loss.
    """
    from transformers.pytorch_utils import Conv1D

    head = base.get_output_embeddings()
    heads = [head, *(getattr(base, name, None) for name in CLASSIFIERS)]
    kinds = (nn.Linear, Conv1D)  # GPT-2's linear layers are of a class of their own
    linear = {name.rpartition(".")[2] for name, m in base.named_modules() if isinstance(m, kinds) and m not in heads}
    names = [name for name, _ in base.named_modules()]
    targets = _split(lora.targets)
    if targets == ["all-linear"]:
        return sorted(linear)
    for target in targets:
        hits = [name for name in names if name == target or name.endswith(f".{target}")]
        if not hits:
            raise ConfigError(f"--lora.targets {target}: no such module; linear ones are {', '.join(sorted(linear))}")
        if any(base.get_submodule(name) in heads for name in hits):
            raise ConfigError(
                f"--lora.targets {target}: the output head takes no adapter; train it whole with"
                f" --lora.modules-to-save {target}",
                USAGE,
            )
    return sorted(set(targets))


def whole_modules(base: Any, lora: Lora) -> list[str]:
    """Modules that are trained whole. Raises ConfigError (2) for a name that no module with weights has."""
    weighted = [name for name, m in base.named_modules() if name and any(True for _ in m.parameters(recurse=False))]
    wanted = _split(lora.modules_to_save) + [name for name in CLASSIFIERS if hasattr(base, name)]
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name, _ in base.named_modules()):
            known = sorted({name.rpartition(".")[2] for name in weighted})
            raise ConfigError(f"--lora.modules-to-save {target}: no such module; there are {', '.join(known)}", USAGE)
    return wanted


def _split(names: list[str]) -> list[str]:
    """Names given one by one, or with commas between them."""
    return [part.strip() for name in names for part in name.split(",") if part.strip()]


def causal_lm(model: Any) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def trainable(model: Any) -> dict[str, Tensor]:
    """Parameters that are trained, by name, tied ones once. Raises ConfigError (2) if there are none."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ConfigError("0 trainable parameters; check --lora.targets", USAGE)
    return found
