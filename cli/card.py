"""The card of a model or an adapter: what its manifest says, as the README.md that hubs show."""

import json
from typing import Any

from postmill.io.json_file import load_json
from postmill.io.manifest import Artifact, InputEntry
from postmill.io.model_folder import ADAPTER_CONFIG

_SHOWN = 12
"""Metrics at most."""


def card(artifact: Artifact, name: str) -> str:
    """README.md: front matter that hubs read, then how it was made, from what, and what was measured."""
    manifest = artifact.manifest
    base = _base(artifact)
    is_adapter = manifest.kind == "adapter"
    front = {"library_name": "peft" if is_adapter else "transformers", "tags": ["postmill", manifest.stage]}
    if base:
        front |= {"base_model": base}
        front |= {"base_model_relation": "adapter"} if is_adapter else {}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {name}", ""]
    what = "An adapter" if is_adapter else "A model"
    lines += [f"{what} made by `postmill {manifest.stage}`{f' from {base}' if base else ''}.", ""]
    lines += _table("Measured", _numbers(manifest.metrics))
    lines += _table("Options", _options(manifest.config))
    lines += _table("Made from", {f"{entry.port} ({entry.kind})": _origin(entry) for entry in manifest.inputs})
    lines += _table("Versions", manifest.versions)
    lines += [f"Content key: `{manifest.key}`. `manifest.json` has every file's digest.", ""]
    return "\n".join(lines)


def _base(artifact: Artifact) -> str:
    """What hubs call the base: owner/name where it came from one, or the name that PEFT's config has."""
    for entry in artifact.manifest.inputs:
        if entry.port == "model" and entry.source.startswith("hf:"):
            return entry.source.removeprefix("hf:").partition("@")[0]
    named = load_json(artifact.file(ADAPTER_CONFIG)).get("base_model_name_or_path") if _has_config(artifact) else ""
    return named if isinstance(named, str) and named.count("/") == 1 and not named.startswith((".", "/")) else ""


def _has_config(artifact: Artifact) -> bool:
    return artifact.file(ADAPTER_CONFIG).is_file()


def _origin(entry: InputEntry) -> str:
    return f"{entry.source}, {entry.digest[:23]}" if entry.source else entry.digest[:23]


def _numbers(metrics: dict[str, Any]) -> dict[str, str]:
    plain = {key: value for key, value in metrics.items() if isinstance(value, int | float) and value is not True}
    return {
        key: f"{value:.6g}" if isinstance(value, float) else f"{value:,}" for key, value in [*plain.items()][:_SHOWN]
    }


def _options(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Options that say something, groups by their dotted names."""
    options: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            options |= _options(value, f"{prefix}{key}.")
        elif value not in (None, False, 0, [], ""):
            options[prefix + key] = json.dumps(value)
    return options


def _table(title: str, rows: dict[str, str]) -> list[str]:
    if not rows:
        return []
    body = [f"| `{key}` | {value.replace('|', '/')} |" for key, value in rows.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *body, ""]
