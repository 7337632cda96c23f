"""`postmill STAGE ...`: argv in, exit code out, for any stage."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.chain import read_for_stage
from postmill.cli.flags import Given, chosen_names, read_recipe, resolve
from postmill.cli.help import common_flags, flag_name
from postmill.io.errors import ConfigError
from postmill.stages.options import Option, bare, explain_unknown, options, short_names
from postmill.stages.spec import Stage
from postmill.stages.table import STAGES
from postmill.stages.tables import closest

_SHORT = {"-o": "--output", "-q": "--quiet", "-h": "--help", "-f": "--force"}
_SWITCHES = {"--dry-run", "--json", "--quiet", "--replace", "--force", "--offline", "--debug", "--help"}


class Call(msgspec.Struct):
    """A parsed command line: inputs by port, what was said of the config, and the common flags."""

    inputs: dict[str, list[str]]
    said: dict[str, list[Given]]
    common: dict[str, str]


def parse(stage: Stage, argv: list[str]) -> Call:
    """Split argv into inputs, config and common flags. Raises ConfigError (2) at the first word it cannot place."""
    call = Call({name: [] for name in stage.inputs}, {}, {})
    argv = _files_named(stage, argv)
    known = _known_options(stage, argv)
    by_flag = {port.flag: name for name, port in stage.inputs.items() if port.flag}
    positional = [name for name, port in stage.inputs.items() if not port.flag]
    words: list[str] = []
    of_recipes: dict[str, list[str]] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += rest
            break
        if word.startswith("@"):
            recipe = word[1:] or _value(rest, "@")
            said, given = read_for_stage(Path(recipe), stage)
            of_recipes |= given
            for field, givens in said.items():
                call.said.setdefault(field, []).extend(givens)
        elif word.startswith("-") and word != "-" and not word.startswith("-#"):
            name, has_value, value = word.partition("=")
            name = _SHORT.get(name, name)
            if has_value:
                rest.insert(0, value)
            if name in by_flag:
                call.inputs[by_flag[name]].append(_value(rest, name))
            elif name in common_flags(is_service=stage.is_service, shards=stage.shards):
                call.common[name] = "" if name in _SWITCHES else _value(rest, name)
            else:
                _config_flag(stage, known, name, rest, call.said)
        else:
            words.append(word)
    _place(stage, positional, words, call, of_recipes)
    return call


def _files_named(stage: Stage, argv: list[str]) -> list[str]:
    """`--objective file.py:function` as the name that stands for it, and the file for its port."""
    out: list[str] = []
    choices = {flag_name(path): option.choice for path, option in options(stage.config).items() if option.choice}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        choice = choices.get(name)
        if choice is None or not choice.files or not (has_value or rest):
            out.append(word)
            continue
        value = value if has_value else rest.pop(0)
        is_file = ".py:" in value
        out += [name, choice.files if is_file else value]
        out += [stage.inputs[choice.files_port].flag, value] if is_file else []
    return out


def _value(rest: list[str], name: str) -> str:
    if not rest:
        raise ConfigError(f"{name}: needs a value")
    return rest.pop(0)


def _known_options(stage: Stage, argv: list[str]) -> dict[str, Option]:
    """The stage's options by every name they go by, with the choices that argv and its recipes make."""
    # a choice inside a group goes by its last part too: `layout` is `parallel.layout`
    choices = short_names({path: option for path, option in options(stage.config).items() if option.choice is not None})
    said: dict[str, list[Given]] = {}
    for word, after in zip(argv, [*argv[1:], ""], strict=False) if choices else ():
        name, has_value, value = word.partition("=")
        path = name.removeprefix("--").replace("-", "_")
        if word.startswith("@") and (word[1:] or after):
            recipe = read_recipe(Path(word[1:] or after), stage.name, STAGES, stage.config)
            for known_name, chooser in choices.items():
                said.setdefault(chooser, []).extend(recipe.get(known_name, []))
        elif name.startswith("--") and path in choices:
            said.setdefault(choices[path], []).append(Given(value if has_value else after, name, True))
    known = options(stage.config, chosen_names(stage.config, said))
    return {name: known[path] for name, path in short_names(known).items()}


def _config_flag(
    stage: Stage, known: dict[str, Option], name: str, rest: list[str], said: dict[str, list[Given]]
) -> None:
    path = name.removeprefix("--").replace("-", "_")
    negated = path.removeprefix("no_")
    if path not in known and negated in known and bare(known[negated].kind) is bool:
        said.setdefault(negated, []).append(Given("false", name, True))
    elif path not in known:
        flags = (
            [flag_name(p) for p in known]
            + list(common_flags(is_service=stage.is_service, shards=stage.shards))
            + [p.flag for p in stage.inputs.values() if p.flag]
        )
        why = explain_unknown(path, stage.name, stage.config, {option.path: option for option in known.values()})
        if why.startswith("no such option"):
            why = f"no such flag of {stage.name}{closest(name, flags)}"
        raise ConfigError(f"{name}: {why}")
    elif bare(known[path].kind) is bool:
        is_value = bool(rest) and rest[0] in ("true", "false")
        said.setdefault(path, []).append(Given(rest.pop(0) if is_value else "true", name, True))
    else:
        said.setdefault(path, []).append(Given(_value(rest, name), name, True))


def _place(stage: Stage, positional: list[str], words: list[str], call: Call, of_recipes: dict[str, list[str]]) -> None:
    """Give positional words to ports: one each, the rest to the port that takes many. A port without any gets what a
    recipe says."""
    for name in positional:
        if stage.inputs[name].many:
            call.inputs[name] += words
            words = []
        elif words:
            call.inputs[name].append(words.pop(0))
    if words:
        raise ConfigError(f"{words[0]}: one input too many for {stage.name}")
    for name, given in of_recipes.items():
        call.inputs[name] = call.inputs[name] or given
    for name in positional:
        # in a pipe, an input that can come from stdin need not be named
        if stage.inputs[name].stream and not call.inputs[name] and not sys.stdin.isatty():
            call.inputs[name].append("-")


def run(stage: Stage, argv: list[str]) -> int:
    """Parse, run, report. Returns the exit code; errors are raised for `main` to show."""
    call = parse(stage, argv)
    if "--offline" in call.common:
        from postmill.io.hub import go_offline

        go_offline()
    config = resolve(stage.config, call.said, stage.name)
    if stage.is_service:
        return _serve(stage, config, call)
    output = call.common.get("--output", "-" if stage.stream else "")
    if not output:
        raise ConfigError(f"{stage.name}: no output; pass -o DIR")
    target = None if output == "-" else Path(output)
    from postmill.stages.runner import Options, run_stage

    _modules_are_loaded()
    options = Options(
        force="--force" in call.common,
        replace="--replace" in call.common,
        threads=_number("--threads", call.common.get("--threads", "0")),
        max_dropped=share("--max-dropped", call.common.get("--max-dropped", "100%")),
        shard=_shard(call.common["--shard"]) if "--shard" in call.common else None,
    )
    if "--dry-run" in call.common:
        return _dry_run(stage, config, call, target)
    from postmill.stages.progress import Progress, duration

    # of several ranks, the first speaks
    is_quiet = stage.ranks and os.environ.get("RANK", "0") != "0"
    with Progress.install(quiet=is_quiet or "--quiet" in call.common):
        outcome = run_stage(stage, config, call.inputs, target, options)
        if outcome.status == "done" and (counts := outcome.manifest.counts):
            Progress.say(stage.name, f"{counts.describe()}; {duration(outcome.seconds)}", always=True)
    if outcome.status == "part":
        return 0
    if "--json" in call.common:
        report = {
            "version": 1,
            "status": outcome.status,
            "output": str(outcome.path) if outcome.path else None,
            "digest": outcome.manifest.digest(),
            "counts": outcome.manifest.counts,
            "metrics": outcome.manifest.metrics,
            "seconds": round(outcome.seconds, 3),
        }
        stream = sys.stdout if target else sys.stderr
        stream.write(msgspec.json.encode(report).decode() + "\n")
    elif target is not None:
        if outcome.status == "up-to-date" and "--quiet" not in call.common:
            sys.stderr.write(f"{stage.name}: up to date\n")
        sys.stdout.write(f"{target}\n")
    return 0


def _modules_are_loaded() -> None:
    """Let Python look for garbage again, which `main` stopped, but not among what stays to the end."""
    gc.freeze()
    gc.enable()


def _serve(stage: Stage, config: Any, call: Call) -> int:
    """Run a stage that makes no artifact, until it ends."""
    if "--dry-run" in call.common:
        return _dry_run(stage, config, call, None)
    from postmill.stages.progress import Progress
    from postmill.stages.runner import run_service

    _modules_are_loaded()
    with Progress.install(quiet="--quiet" in call.common):
        run_service(stage, config, call.inputs, threads=_number("--threads", call.common.get("--threads", "0")))
    return 0


def _dry_run(stage: Stage, config: Any, call: Call, target: Path | None) -> int:
    from postmill.stages.runner import find_inputs, job_of

    if any("-" in given for given in call.inputs.values()):
        raise ConfigError("--dry-run: would have to read stdin; give paths")
    inputs = find_inputs(stage, call.inputs)
    job = job_of(stage, config, inputs)
    plan = {
        "stage": stage.name,
        "config": job.config,
        "inputs": job.inputs,
        "output": str(target) if target else "" if stage.is_service else "-",
        "kind": stage.kind(config),
        "key": job.key,
    }
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(plan), indent=2).decode() + "\n")
    return 0


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{name}: {text!r}: expected a number from 0 up")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    """`2/4` as the second of four."""
    mine, _, of = text.partition("/")
    if not (mine.isdecimal() and of.isdecimal() and 1 <= int(mine) <= int(of)):
        raise ConfigError(f"--shard: {text!r}: expected part I of N, like 2/4")
    return int(mine), int(of)


def share(name: str, text: str) -> float:
    """`1%` or `0.01` as a fraction."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"{name}: {text!r}: expected a share like 1% or 0.01")
    return share
