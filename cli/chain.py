"""A recipe of several stages: sections in the order they run, what goes into each, and the command that each one is.

    model = "HuggingFaceTB/SmolLM2-135M-Instruct"   # a name for every stage that needs a model
    data = "chats.jsonl"

    [tokenize]                                      # a section is a stage: its options, and inputs by their names
    loss_scale = "last_round"
    [pack]
    [train]
    lr = 2e-4
    [polish]                                        # a second run of a stage says which one it is
    stage = "train"
    model = "train"                                 # an input may name another section: what that one makes

An input that is not said is what the nearest section before makes, if that is of the right kind, or the value of the
same name at the top of the file. Paths are those of the working directory, as on a command line.
"""

import importlib
import shlex
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.flags import WIRES, Given, parse_recipe, read_recipe, resolve
from postmill.cli.help import flag_name
from postmill.io.errors import NO_INPUT, ConfigError
from postmill.stages.spec import Port, Stage
from postmill.stages.table import STAGES
from postmill.stages.tables import closest

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
"""Recipes that come with the package."""


class _NoInput(ConfigError):
    """Nothing is there for an input of a section."""


class Step(msgspec.Struct, frozen=True):
    """One section, ready to run."""

    name: str
    stage: Stage
    config: Any
    inputs: dict[str, list[str]]
    output: Path
    options: list[str]
    """Flags for its options, as a person would type them."""
    ranks: int = 1
    needs: tuple[str, ...] = ()
    """Sections whose outputs go in."""

    @property
    def argv(self) -> list[str]:
        """The command without `postmill`."""
        words = ["launch", "--ranks", str(self.ranks)] if self.ranks > 1 else []
        words.append(self.stage.name)
        for name, port in self.stage.inputs.items():
            words += [] if port.flag else self.inputs.get(name, [])
        for name, port in self.stage.inputs.items():
            words += [word for value in self.inputs.get(name, []) for word in (port.flag, value)] if port.flag else []
        return [*words, "-o", str(self.output), *self.options]

    @property
    def command(self) -> str:
        """The line to type into a shell."""
        return shlex.join(["postmill", *self.argv])


def find_recipe(name: str) -> Path:
    """The file, or the recipe of that name that comes with the package. Raises ConfigError (66)."""
    path = Path(name)
    if path.suffix or path.is_file():  # a folder, as -o makes, may be called like a recipe of ours
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe; give a file, or one of {_built_in()}", NO_INPUT)
        return path
    if not (RECIPES / f"{name}.toml").is_file():
        raise ConfigError(f"{name}: no such recipe{closest(name, _names())}; give a file, or one of {_built_in()}")
    return RECIPES / f"{name}.toml"


def _names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def _built_in() -> str:
    return ", ".join(_names()) or "none"


def read_steps(
    path: Path, settings: dict[str, list[str]], output: Path | None, *, besides: tuple[str, ...] = ()
) -> list[Step]:
    """The steps of a recipe, with `settings` (`section.option` or a name at the top -> values) over what it says.

    besides: sections that are no stages, for whoever runs the steps. Raises ConfigError (2) naming every fault with its
    place in the file, before anything runs.
    """
    root = parse_recipe(path)
    sections = [name for name, value in root.items() if isinstance(value, dict) and name not in besides]
    wires = _wires(path, root, settings)
    folder = output or (Path(wires["output"][0]) if "output" in wires else None)
    if folder is None:
        raise ConfigError(f"{path}: no folder for outputs; pass -o DIR")
    _check_settings(settings, [*sections, *besides])
    if "loop" in root and "loop" not in besides:
        raise ConfigError(f"{path}: [loop]: its rounds are run by `postmill loop {path}`")
    steps: list[Step] = []
    faults: list[str] = []
    for name in sections:
        try:
            steps.append(_step(path, name, steps, wires=wires, settings=settings, output=folder / name))
        except _NoInput as fault:
            # after a section with a fault, what it would have made is missing too: one fault is enough
            faults += [] if faults else [str(fault)]
        except ConfigError as fault:
            faults.append(str(fault))
    if not sections:
        faults.append(f"{path}: no sections; add one for each stage, as [tokenize]")
    if faults:
        raise ConfigError("\n".join(faults))
    return steps


def read_for_stage(path: Path, stage: Stage) -> tuple[dict[str, list[Given]], dict[str, list[str]]]:
    """What a recipe says to one stage alone: its options, and its inputs by port.

    An input that names a section is what that section makes below the recipe's `output`. Raises ConfigError (2).
    """
    said = read_recipe(path, stage.name, STAGES, stage.config)
    root = parse_recipe(path)
    wires = {key: _texts(root[key], f"{path}: {key}") for key in WIRES if key in root}
    for of_the_chain in ("stage", "ranks"):
        said.pop(of_the_chain, None)
    inputs: dict[str, list[str]] = {}
    for name, port in stage.inputs.items():
        for one in said.pop(name, []):
            texts = [_labelled(port, text) for text in _texts(one.value, one.place)]
            inputs[name] = [label + _made_by(root, wires, name, text, one.place) for label, text in texts]
        if name not in inputs and port.required and name in wires:
            inputs[name] = wires[name]
    return said, inputs


def _made_by(root: dict[str, Any], wires: dict[str, list[str]], port: str, text: str, place: str) -> str:
    """What an input of a section stands for: a path as it is, a name at the top, or what another section makes."""
    if text in wires and text != port:
        return wires[text][0]
    if not isinstance(root.get(text), dict):
        return text
    if "output" not in wires:
        raise ConfigError(f'{place}: {text} is a section; pass its folder, or say where outputs go: output = "out"')
    return str(Path(wires["output"][0]) / text)


def _wires(path: Path, root: dict[str, Any], settings: dict[str, list[str]]) -> dict[str, list[str]]:
    """What stands at the top of the recipe, or is set for it."""
    wires: dict[str, list[str]] = {}
    for key, value in root.items():
        if isinstance(value, dict):
            continue
        if key not in WIRES:
            raise ConfigError(
                f"{path}: {key}: outside of a section; put options into [stage] tables (here: {', '.join(WIRES)})"
            )
        wires[key] = _texts(value, f"{path}: {key}")
    return wires | {key: values for key, values in settings.items() if "." not in key}


def _check_settings(settings: dict[str, list[str]], sections: list[str]) -> None:
    for key in settings:
        head, dot, _ = key.partition(".")
        known = sections if dot else list(WIRES)
        if head not in known:
            what = "section" if dot else "name"
            raise ConfigError(f"--set {key}: no such {what}{closest(head, known)}; there are {', '.join(known)}")


def _step(
    path: Path,
    name: str,
    before: list[Step],
    *,
    wires: dict[str, list[str]],
    settings: dict[str, list[str]],
    output: Path,
) -> Step:
    """One section as a step. Raises ConfigError with every fault of it."""
    stage = _stage(path, name, parse_recipe(path)[name])
    said = read_recipe(path, name, STAGES, stage.config)
    said.pop("stage", None)
    for key, values in settings.items():
        section, _, option = key.partition(".")
        if section == name and option:
            said[option.replace("-", "_")] = [Given(value, f"--set {key}", True) for value in values]
    ranks = said.pop("ranks", []) if stage.ranks else []
    given = {port: said.pop(port) for port in list(said) if port in stage.inputs}
    config = resolve(stage.config, said, f"{path}: {name}" if name == stage.name else f"{path}: {name} ({stage.name})")
    inputs, needs = _inputs(f"{path}: {name}", stage, given, before, wires)
    options = [word for key, values in said.items() for word in _flags(key, values)]
    return Step(name, stage, config, inputs, output, options, _ranks(path, name, ranks), needs)


def _stage(path: Path, name: str, table: dict[str, Any]) -> Stage:
    stage = table.get("stage", name)
    if stage not in STAGES:
        wanted = f"[{name}]" if stage == name else f"[{name}] stage = {stage!r}"
        known = ", ".join(STAGES)
        raise ConfigError(
            f"{path}: {wanted}: no such stage{closest(str(stage), list(STAGES))}; a section of another name needs"
            f' stage = "..." (there are {known})'
        )
    declared: Stage = importlib.import_module(f"postmill.stages.{stage}.config").STAGE
    return declared


def _ranks(path: Path, name: str, said: list[Given]) -> int:
    value = str(said[-1].value) if said else "1"
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{path}: {name}: ranks {value}: expected a number of processes from 1 up")
    return int(value)


def _inputs(
    place: str, stage: Stage, given: dict[str, list[Given]], before: list[Step], wires: dict[str, list[str]]
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """References by port, and the sections they are made by."""
    by_name = {step.name: step for step in before}
    inputs: dict[str, list[str]] = {}
    needs: list[str] = []
    for name, port in stage.inputs.items():
        values = [text for one in given.get(name, []) for text in _texts(one.value, one.place)]
        if not values:
            values = _implied(place, name, port, before, wires)
        for label, value in (_labelled(port, text) for text in values):
            if value in by_name:
                _check_kind(place, name, port, by_name[value])
                needs.append(value)
                inputs.setdefault(name, []).append(f"{label}{by_name[value].output}")
            else:
                # the name of a wire stands for its value; that of the port itself would be a circle
                places = wires[value] if value in wires and value != name else [value]
                inputs.setdefault(name, []).extend(label + text for text in places)
    return inputs, tuple(needs)


def _labelled(port: Port, text: str) -> tuple[str, str]:
    """`NAME=` and what it names, for a port whose inputs are NAME=PATH; else nothing and the text."""
    label, has_label, rest = text.partition("=")
    return (f"{label}=", rest) if port.named and has_label else ("", text)


def _implied(place: str, name: str, port: Port, before: list[Step], wires: dict[str, list[str]]) -> list[str]:
    """What goes in at a port of which the section says nothing. Raises ConfigError if it is needed but not there."""
    if not port.flag:
        nearest = next((step for step in reversed(before) if _kind(step) in port.kinds), None)
        if nearest is not None:
            return [nearest.name]
    if port.required and name in wires:
        return wires[name]
    if port.required:
        known = {"model": "-m MODEL", "data": "it behind the recipe"}
        flag = known.get(name, f"--set {place.rpartition(' ')[2]}.{name}=...")
        raise _NoInput(f"{place}: no {name}; no section before makes {' or '.join(port.kinds)}; pass {flag}")
    return []


def _check_kind(place: str, name: str, port: Port, maker: Step) -> None:
    kind = _kind(maker)
    if kind not in port.kinds and not (kind == "model" and "tokenizer" in port.kinds):
        raise ConfigError(f"{place}: {name}: {maker.name} makes {kind}, expected {' or '.join(port.kinds)}")


def _kind(step: Step) -> str:
    return step.stage.kind(step.config)


def _texts(value: Any, place: str) -> list[str]:
    """A text or several. Raises ConfigError for anything else."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) and item for item in values):
        raise ConfigError(f"{place}: {value!r}: expected a text or a list of texts")
    return values


def _flags(path: str, values: list[Given]) -> list[str]:
    """What was said of an option, as flags that say the same."""
    flag = flag_name(path)
    words: list[str] = []
    for said in values:
        value = said.value
        if isinstance(value, bool) or (said.from_flag and value in ("true", "false")):
            words.append(flag if value in (True, "true") else f"--no-{flag[2:]}")
        elif isinstance(value, list) and all(isinstance(item, (int, float)) for item in value):
            words += [flag, ",".join(map(str, value))]
        elif isinstance(value, list):
            words += [word for item in value for word in (flag, str(item))]
        elif isinstance(value, dict):
            words += [flag, msgspec.json.encode(value).decode()]
        else:
            words += [flag, str(value)]
    return words
