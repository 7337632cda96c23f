"""Is the base that was given the one an adapter says it was trained on? Told by names, where no digest tells.

Trainers that load a quantized model write its name into the adapter (`unsloth/Qwen3-8B-bnb-4bit`); the factors belong
to the model before it was quantized, which has the same name without that ending.
"""

import re
from pathlib import Path
from typing import Any

from postmill.io.json_file import load_json
from postmill.io.model_folder import ADAPTER_CONFIG

_QUANTIZED = re.compile(
    r"[-_.](unsloth[-_])?(bnb[-_]?(4|8)bits?|[48]bits?|nf4|gptq|awq|fp8|hqq|int[48]|mxfp4|w[48]a(16|8)|quantized).*$",
    re.IGNORECASE,
)


def named_base(adapter: Path) -> str:
    """What the adapter says its base is, without what quantizing added to the name; "" if it does not say."""
    name = load_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    return _QUANTIZED.sub("", name.rstrip("/")) if isinstance(name, str) else ""


def names_of(base: Path, source: str, config: dict[str, Any]) -> set[str]:
    """The names a base goes by: its folder, its repository (`hf:owner/name@commit`), what its config keeps."""
    known = [base.resolve().name, source.partition("@")[0].rpartition(":")[2], str(config.get("_name_or_path") or "")]
    # the hub's cache: models--owner--name/snapshots/commit
    known += [
        part.removeprefix("models--").replace("--", "/") for part in base.resolve().parts if part.startswith("models--")
    ]
    return {_last(name) for name in known if name}


def _last(name: str) -> str:
    return _QUANTIZED.sub("", name.rstrip("/").rpartition("/")[2]).lower()


def unlike_name(adapter: Path, base: Path, source: str, config: dict[str, Any]) -> str:
    """The base that the adapter names, if it is a repository's and no name of the given base is like it; else ""."""
    named = named_base(adapter)
    is_repository = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", named)) and not Path(named).exists()
    repository = bool(source or config.get("_name_or_path")) or any(
        p.startswith("models--") for p in base.resolve().parts
    )
    return named if is_repository and repository and _last(named) not in names_of(base, source, config) else ""
