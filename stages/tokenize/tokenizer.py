"""A model's tokenizer and chat templates, read from its folder without transformers.

The same files win as in transformers: `chat_template.jinja` and `additional_chat_templates/` over the configuration,
that over `chat_template.json`; `tokenizer_config.json` over `special_tokens_map.json`.
"""

from pathlib import Path
from typing import Any

import msgspec

from postmill.io import tekken
from postmill.io.digest import digest_bytes
from postmill.io.errors import ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.llama_tokenizer import is_rebuilt, rebuilt
from postmill.io.model_folder import tokenizer_files
from postmill.stages.tables import closest

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerFolder(msgspec.Struct, frozen=True):
    """What the encoder needs of a model folder."""

    tokenizer_json: bytes
    special_texts: dict[str, str]
    """`bos_token` and the like, for the template."""
    extra_special: list[str]
    """Special tokens the configuration names, in its order."""
    templates: dict[str, str]
    """Chat templates by name."""


def load_tokenizer(folder: Path) -> TokenizerFolder:
    """Read the folder. Raises ArtifactError if there is no fast tokenizer in it (66) or a file is damaged (65)."""
    files = tokenizer_files(folder)
    config = load_json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    mapped = load_json(files["special_tokens_map.json"]) if "special_tokens_map.json" in files else {}
    texts: dict[str, str] = {}
    extra: list[str] = []
    for name, value in {**mapped, **config}.items():
        text = _token_text(value)
        if text is not None and (name in _NAMED or (name.endswith("_token") and not name.startswith("add_"))):
            texts[name] = text
    added = config.get("added_tokens_decoder") or {}
    if isinstance(added, dict):
        ordered = sorted((item for item in added.items() if item[0].isdigit()), key=lambda item: int(item[0]))
        extra += [v["content"] for _, v in ordered if isinstance(v, dict) and v.get("special") and "content" in v]
    extra += texts.values()
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name) or mapped.get(name) or []
        extra += [_token_text(text) or "" for text in (more.values() if isinstance(more, dict) else more)]
    if "tokenizer.json" not in files:
        texts = tekken.SPECIAL_TEXTS | texts
    return TokenizerFolder(
        _tokenizer_json(files, config), texts, list(dict.fromkeys(filter(None, extra))), _templates(files, config)
    )


def _tokenizer_json(files: dict[str, Path], config: dict[str, Any]) -> bytes:
    if "tokenizer.json" not in files:
        return tekken.convert(files[tekken.TEKKEN])
    text = files["tokenizer.json"].read_bytes()
    return rebuilt(text, config) if is_rebuilt(files["tokenizer.json"].parent, config) else text


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _templates(files: dict[str, Path], config: dict[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    given = config.get("chat_template")
    if given is None and "chat_template.json" in files:
        given = load_json(files["chat_template.json"]).get("chat_template", given)
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, dict):
        templates |= given
    for item in given if isinstance(given, list) else []:
        templates[item["name"]] = item["template"]
    for name, path in files.items():
        if name.endswith(".jinja"):
            templates["default" if name == "chat_template.jinja" else path.stem] = _text(path)
    return templates


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


class ChosenTemplates(msgspec.Struct, frozen=True):
    """The templates of a run. `with_tools` is set when rows with tools have one of their own."""

    name: str
    default: str | None
    with_tools: str | None

    def digest(self) -> str:
        return digest_bytes("\0".join([self.default or "", self.with_tools or ""]).encode())


def choose_templates(
    model: TokenizerFolder, name: str, file: Path | None, fallback: str | None = None
) -> ChosenTemplates:
    """`file` if given, else the template called `name`, else what transformers would take. Raises ConfigError (2)."""
    if file is not None:
        return ChosenTemplates(file.name, _text(file), None)
    if name:
        if name not in model.templates:
            names = sorted(model.templates)
            raise ConfigError(
                f"--template-name: no chat template {name!r} in the model{closest(name, names)}; there are"
                f" {', '.join(names) or 'none'}"
            )
        return ChosenTemplates(name, model.templates[name], None)
    if fallback is None and model.templates and "default" not in model.templates and "tool_use" not in model.templates:
        known = ", ".join(sorted(model.templates))
        raise ConfigError(f"template_name: none of the model's chat templates is the default; choose one of {known}")
    return ChosenTemplates("chat template", model.templates.get("default", fallback), model.templates.get("tool_use"))
