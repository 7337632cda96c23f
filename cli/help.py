"""The text of `--help`, from the stage's declaration alone."""

import textwrap
import typing
from typing import Any

import msgspec

from postmill.cli.flags import config_fields, field_docs, flag_name, strip_optional
from postmill.cli.stage_command import COMMON
from postmill.stages.spec import Stage


def _type_name(kind: Any) -> str:
    bare = strip_optional(kind)
    if typing.get_origin(bare) is typing.Literal:
        return "|".join(str(arg) for arg in typing.get_args(bare))
    if typing.get_origin(bare) in (list, tuple):
        return f"{_type_name(typing.get_args(bare)[0])}..."
    if typing.get_origin(bare) is dict:
        return "json"
    return {"str": "text", "int": "n", "float": "x"}.get(getattr(bare, "__name__", ""), str(bare))


def _entry(left: str, text: str) -> str:
    body = textwrap.fill(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return f"  {left}\n{body}\n" if text else f"  {left}\n"


def stage_help(stage: Stage) -> str:
    """Sentence, example, inputs, options, common flags."""
    positional = [(n, p) for n, p in stage.inputs.items() if not p.flag]
    flagged = [(n, p) for n, p in stage.inputs.items() if p.flag]
    usage = ["postmill", stage.name]
    usage += [name.upper() + ("..." if port.many else "") for name, port in positional]
    usage += [
        f"{port.flag} {name.upper()}" if port.required else f"[{port.flag} {name.upper()}]" for name, port in flagged
    ]
    usage += ["-o OUTPUT", "[options]", "[@ recipe.toml]"]
    summary = " ".join((stage.config.__doc__ or "").split())
    parts = [f"{summary}\n\n", f"usage: {' '.join(usage)}\n"]
    if stage.example:
        parts.append("\nexample:\n" + textwrap.indent(textwrap.dedent(stage.example).strip(), "  ") + "\n")
    parts.append("\ninputs:\n")
    for name, port in [*positional, *flagged]:
        parts.append(_entry(port.flag + " " + name.upper() if port.flag else name.upper(), port.help))
    parts.append("\noptions:\n")
    docs = field_docs(stage.config)
    for path, (kind, default) in config_fields(stage.config).items():
        parts.append(_option(path, kind, default, docs.get(path, "")))
    parts.append("\ncommon:\n")
    parts += [f"  {name:<16}{text}\n" for name, text in COMMON.items()]
    return "".join(parts)


def _option(path: str, kind: Any, default: Any, doc: str) -> str:
    flag = flag_name(path)
    left = f"{flag}, --no-{flag[2:]}" if strip_optional(kind) is bool else f"{flag} {_type_name(kind)}"
    if default is msgspec.NODEFAULT:
        return _entry(left, f"{doc} (required)")
    shown = {True: "on", False: "off"}.get(default, default) if isinstance(default, bool) else default
    empty = shown is None or shown == "" or shown in ([], {}, ())
    return _entry(left, doc if empty else f"{doc} (default: {shown})")
