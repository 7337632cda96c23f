"""A recipe out of another tool's config, and what of it could not be carried over."""

import json
import re
from typing import Any

import msgspec

from postmill.cli.coming_from import deepspeed, grpo
from postmill.cli.coming_from.read import TOOLS, Config, rules_of
from postmill.cli.coming_from.rule import Rule
from postmill.cli.flags import Given, chosen_names, resolve
from postmill.cli.loop import Loop
from postmill.io.errors import ConfigError
from postmill.stages.options import options, short_names
from postmill.stages.spec import Stage
from postmill.stages.tables import closest

_REFERENCE = {"dpo", "kto"}
_CHAINS: dict[str, tuple[str, ...]] = {
    "grpo": ("prompts", "rollout", "reward", "pack", "train", "merge", "loop"),
    "export": ("merge", "quantize"),
    "infer": ("eval",),
    "eval": ("eval",),
    "deploy": ("eval",),
    "sample": ("prompts", "rollout"),
    "rollout": ("prompts", "rollout"),
    deepspeed.TASK: ("train",),
}
"""Tasks that are no training on rows -> their sections."""
_OBJECTIVES = {"sft": "", "pt": "pretrain", "ipo": "dpo", "rm": "rm", "reward": "rm", deepspeed.TASK: ""}


_FIRST = {"objective", "tuner", "optimizer", "max_length", "val_ratio", "max_tokens", "cispo_cap"}
"""Options that others need beside them."""


class Line(msgspec.Struct, frozen=True):
    """What became of one option."""

    name: str
    value: Any
    place: str
    status: str
    """`carried`, `needless`, `missing`, `unknown`, or `refused`."""
    note: str


class Imported(msgspec.Struct, frozen=True):
    """A recipe in the making."""

    tool: str
    task: str
    top: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    lines: list[Line]

    def count(self, *statuses: str) -> int:
        return sum(line.status in statuses for line in self.lines)


def convert(config: Config) -> Imported:
    """The recipe of a config. Every option is in `lines`, with what became of it."""
    task = str(TOOLS[config.tool].task(config.options))
    sections = _sections(task)
    top: dict[str, Any] = {}
    lines: list[Line] = []
    rules = rules_of(config.tool, task)
    for name, value in _flat(config, rules):
        rule = rules.get(name)
        place = config.places.get(name, config.places.get(name.partition(".")[0], ""))
        if rule is None:
            near = closest(name, list(rules))
            lines.append(Line(name, value, place, "unknown", f"no option of {config.tool} that is known here{near}"))
            continue
        if not rule.ours:
            is_off = value in (None, False, "", 0, *rule.drop) or str(value).lower() in ("false", "none", "no")
            status = "missing" if rule.is_missing and not is_off else "needless"
            lines.append(Line(name, value, place, status, "off here too" if rule.is_missing and is_off else rule.note))
            continue
        converted = None if value is None or value in rule.drop else _value(rule, value, config)
        if converted is None:
            lines.append(Line(name, value, place, "needless", rule.note or "our default says the same"))
            continue
        lines.append(_put(rule, converted, top, sections, Line(name, value, place, "carried", rule.note)))
    _complete(task, sections, config, top)
    return Imported(config.tool, task, top, sections, lines)


def _flat(config: Config, rules: dict[str, Rule]) -> list[tuple[str, Any]]:
    """Options, and members of tables that have rules of their own: peft_config."""
    pairs: list[tuple[str, Any]] = []
    for name, value in config.options.items():
        if name == "":
            continue
        pairs.append((name, value))
        if isinstance(value, dict):
            pairs += [(key, item) for key, item in value.items() if key in rules and key not in config.options]
    return pairs


def _value(rule: Rule, value: Any, config: Config) -> Any:
    if rule.convert is not None:
        return rule.convert(value, config.options)
    text = value if not isinstance(value, str) else value.strip()
    for word in (text, str(text).lower()):
        if not isinstance(word, (list, dict)) and word in rule.values:
            return rule.values[word]
    return None if text == "" or text is None else text


def _sections(task: str) -> dict[str, dict[str, Any]]:
    if task in _CHAINS:
        return {name: {} for name in _CHAINS[task]}
    names = ["tokenize", "pack", *(["score"] if task in _REFERENCE else []), "train", "merge"]
    return {name: {} for name in names}


def _put(rule: Rule, value: Any, top: dict[str, Any], sections: dict[str, dict[str, Any]], line: Line) -> Line:
    """Set an option, or say why it stays out: its section is not in this chain, or it does not fit there."""
    section, _, option = rule.ours.partition(".")
    if not option:
        top[section] = value
        return line
    if section == "tokenize" and "prompts" in sections:
        section = "prompts"
    if section not in sections:
        return msgspec.structs.replace(line, status="needless", note=f"no {section} in this chain")
    sections[section].setdefault(option, (value, line))
    return line


def _complete(task: str, sections: dict[str, dict[str, Any]], config: Config, top: dict[str, Any]) -> None:
    """What the chain needs beside what was carried over, in the order in which people read it."""
    if "train" in sections:
        _complete_train(task, sections["train"], config)
    if task == "grpo":
        grpo.complete(sections, config.options, config.tool)
    if task == "kto":
        sections["score-mismatched"] = {"stage": "score", "partners": True}
        sections["train"]["scores"] = ["ref=score", "kl=score-mismatched"]
        for name in ("train", "merge"):
            sections[name] = sections.pop(name)
    elif task in _REFERENCE:
        sections["train"]["scores"] = ["ref=score"]
    if task == "pt":
        sections["tokenize"].setdefault("truncation", "split")
    _row_tokens(sections)
    if task == "export" and not sections["quantize"]:
        sections.pop("quantize")  # they merge, and no more
    if "quantize" in sections:
        _calibrate(sections, "data" in top)
    if "train" in sections and "val_ratio" in sections.get("tokenize", {}):
        _hold_out(sections)
    if "prompts" in sections:
        sections["prompts"] = {"stage": "tokenize", "for": "prompt"} | sections["prompts"]
        sections["rollout"]["policy"] = "model"
    if "train" in sections and _plain(sections["train"].get("tuner")) == "full":
        sections.pop("merge", None)
    if "merge" in sections and "quantize" in sections:
        sections["merge"].setdefault("parts", "data")


def _complete_train(task: str, train: dict[str, Any], config: Config) -> None:
    """What is learned, and of which weights, where the config leaves that to its tool."""
    objective = _OBJECTIVES.get(task, task)
    if objective:
        train.setdefault("objective", objective)
    tuner = getattr(TOOLS[config.tool], "tuner", None)
    if tuner is not None:
        train.setdefault("tuner", tuner(config.options))


def _row_tokens(sections: dict[str, dict[str, Any]]) -> None:
    """Bins as long as the longest row, where nothing else is said."""
    if "pack" in sections and "row_tokens" not in sections["pack"]:
        rows = sections["prompts" if "prompts" in sections else "tokenize"]
        length, line = rows.get("max_length", (2048, None))
        sections["pack"]["row_tokens"] = (length, line)
        rows.setdefault("max_length", 2048)


def _calibrate(sections: dict[str, dict[str, Any]], has_data: bool) -> None:
    """What GPTQ and AWQ look at, and their layout. Without data they cannot be: rounding is left."""
    method = _plain(sections["quantize"].get("method"))
    if method not in ("gptq", "awq"):
        return
    sections["quantize"]["layout"] = method
    if has_data:
        sections["quantize"]["rows"] = "tokenize"
        for name in ("tokenize", "merge", "quantize"):
            sections[name] = sections.pop(name, {})


def _hold_out(sections: dict[str, dict[str, Any]]) -> None:
    """Sections that make the held-out rows, and what reads them."""
    held_out = {"stage": "tokenize", "data": "data", "split": "validation"} | sections["tokenize"]
    sections |= {
        "tokenize-valid": held_out,
        "pack-valid": {"stage": "pack", "tokens": "tokenize-valid"} | sections["pack"],
    }
    sections["pack"]["tokens"] = "tokenize"
    sections["train"] |= {"packed": "pack", "valid": "pack-valid"}
    for name in ("score", "train", "merge"):  # after what they read
        if name in sections:
            sections[name] = sections.pop(name)


def _plain(item: Any) -> Any:
    return item[0] if isinstance(item, tuple) else item


def check(imported: Imported, declared: dict[str, Stage]) -> Imported:
    """Without the options that their stage refuses, each with its reason. What the file says to others stays."""
    lines = {id(line): line for line in imported.lines}
    sections = {}
    for name, table in imported.sections.items():
        if name == "loop":
            sections[name] = {option: _plain(item) for option, item in table.items()}
            resolve(Loop, {option: [_said(item)] for option, item in sections[name].items()}, name)
            continue
        stage = declared[_plain(table.get("stage", name))]
        kept: dict[str, Any] = {}
        for option, item in sorted(table.items(), key=lambda pair: pair[0] not in _FIRST):
            value, line = item if isinstance(item, tuple) else (item, None)
            fault = _fault(stage, kept, option, value)
            if fault and line is not None and line in imported.lines:
                lines[id(line)] = msgspec.structs.replace(line, status="refused", note=fault)
            elif not fault:
                kept[option] = value
            elif option == "objective":
                raise ConfigError(f"{imported.tool}: {value}: no chain for that; see postmill recipe list and {fault}")
        sections[name] = {option: kept[option] for option in table if option in kept}
    return msgspec.structs.replace(imported, sections=sections, lines=list(lines.values()))


def _fault(stage: Stage, kept: dict[str, Any], option: str, value: Any) -> str:
    """Why an option cannot be set beside those kept, or nothing."""
    if option in stage.inputs or option in ("stage", "ranks"):
        return ""
    config_options = {key: item for key, item in kept.items() if key not in stage.inputs and key != "stage"}
    said = {key: [_said(item)] for key, item in (config_options | {option: value}).items()}
    try:
        known = options(stage.config, chosen_names(stage.config, said))
        if option not in short_names(known):
            return f"no {option} in {stage.name} as it is chosen here"
        filled = said | ({"row_tokens": [Given(2048, "", False)]} if stage.name == "pack" else {})
        resolve(stage.config, filled, stage.name)
    except ConfigError as error:
        return str(error).split("\n")[0]
    return ""


def _said(value: Any) -> Given:
    """A text as a flag would give it, so that 1e-4 is a number whoever wrote it."""
    return Given(value, "", isinstance(value, str))


def to_toml(imported: Imported, origin: str) -> str:
    """The recipe, with a comment for what was not carried over."""
    carried, total = imported.count("carried", "needless"), len(imported.lines)
    parts = [
        f"# {imported.tool}'s {origin} as a recipe ({imported.task}): {imported.count('carried')} of {total} options"
        f" carried over, {imported.count('needless')} need nothing, {total - carried} are not there.\n"
    ]
    left = [line for line in imported.lines if line.status in ("missing", "unknown", "refused")]
    parts += [f"# not carried over: {line.name} = {_one_line(line.value)}: {line.note}\n" for line in left]
    parts.append("\n" + "".join(f"{key} = {toml_value(value)}\n" for key, value in imported.top.items()))
    for name, table in imported.sections.items():
        parts.append(f"\n[{name}]\n")
        parts += [f"{toml_key(option)} = {toml_value(_plain(value))}\n" for option, value in table.items()]
    return "".join(parts)


def _one_line(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def toml_key(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name, re.ASCII) else json.dumps(name)


def toml_value(value: Any) -> str:
    """A value of TOML: what looks like a number or a switch is one."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_key(str(key))} = {toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    text = str(value)
    if isinstance(value, bool) or text.lower() in ("true", "false"):
        return text.lower()
    if re.fullmatch(r"[+-]?\d+", text):
        return str(int(text))
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return repr(float(text))
    return json.dumps(text, ensure_ascii=False)
