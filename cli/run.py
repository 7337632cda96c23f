"""`postmill run RECIPE`: a chain of stages from one file, each a process of its own, each only if it has to run."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.chain import Step, find_recipe, read_steps
from postmill.cli.child import run_child
from postmill.cli.tool import Args, parse
from postmill.io.errors import EXISTS, FAILED, ArtifactError, ConfigError
from postmill.io.hub import PREFIXES, Repository, newest_commit, parse_repository
from postmill.stages.shared.model_reference import hub_model
from postmill.stages.spec import Port
from postmill.stages.tables import closest

USAGE = """
Run the stages of a recipe, one after another. What is up to date is not made again.

usage: postmill run RECIPE [DATA...] [-m MODEL] -o FOLDER [options]

  postmill run sft chats.jsonl -m HuggingFaceTB/SmolLM2-135M-Instruct -o out/
  postmill run recipe.toml -o out/ --set train.lr=2e-4 --to train
  postmill run recipe.toml -o out/ --dry-run

A recipe is a TOML file with a section for each stage, in the order they run: [tokenize], [pack], [train], ... Each
section makes FOLDER/SECTION from what the sections before it made. RECIPE is a file, or the name of one that comes with
postmill.

  -o FOLDER        where outputs go; a recipe may say it (output = "...")
  -m MODEL         the model, for every stage that needs one
  --set KEY=VALUE  set an option of a section (train.lr=2e-4), or model, data
  --from SECTION   start there; what comes before must be done
  --to SECTION     stop after it
  --dry-run        print the commands; do nothing
  --replace        replace outputs that other inputs or options have made; what is up to date stays
  --force          make every output again, whatever is there
  --offline        fetch nothing from a hub
  --json           print one object about the run at the end
  --quiet          no progress and no table (-q)

The exit code is that of the stage that stopped: 75 means that the same command goes on.
"""
_SHORT = {"-o": "--output", "-m": "--model", "-q": "--quiet", "-f": "--force"}
_SWITCHES = ("--dry-run", "--replace", "--force", "--offline", "--json", "--quiet")
_PASSED_ON = ("--replace", "--force", "--offline", "--quiet")


class Done(msgspec.Struct, omit_defaults=True):
    """What became of a step."""

    stage: str
    status: str
    output: str
    seconds: float = 0.0
    code: int = 0
    digest: str = ""
    fault: str = ""
    """Why it was not run, and what to do, in one line."""


def run(argv: list[str]) -> int:
    """Run the chain. Returns the exit code of the step that stopped, or 0."""
    rest, settings = settings_of(argv)
    args = parse(rest, USAGE, switches=_SWITCHES, valued=("--output", "--model", "--from", "--to"))
    if args is None:
        return 0
    chosen = chosen_steps(args, settings, last=args.options.get("--to", ""))
    if args.has("--dry-run"):
        sys.stdout.write("".join(f"{step.command}\n" for step in chosen))
        return 0
    if args.has("--offline"):
        from postmill.io.hub import go_offline

        go_offline()
    passed_on = [flag for flag in _PASSED_ON if args.has(flag)]
    done = _run_all(chosen, passed_on, quiet=args.has("--quiet"))
    if not args.has("--quiet"):
        sys.stderr.write(table(done))
    sys.stderr.write("".join(f"postmill run: error: {one.stage}: {one.fault}\n" for one in done if one.fault))
    code = next((one.code for one in done if one.code), 0)
    if args.has("--json"):
        report = {"version": 1, "status": "failed" if code else "done", "code": code, "steps": done}
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    elif not code:
        sys.stdout.write(f"{done[-1].output}\n")
    return code


def chosen_steps(args: Args, settings: dict[str, list[str]], *, last: str) -> list[Step]:
    """The steps that a command line names: recipe, data, model, settings, and from where to where."""
    if not args.words:
        raise ConfigError("no recipe; name one (postmill recipe list), or give a file")
    if args.words[1:]:
        settings["data"] = args.words[1:]
    if args.has("--model"):
        settings["model"] = [args.options["--model"]]
    output = Path(args.options["--output"]) if args.has("--output") else None
    steps = read_steps(find_recipe(args.words[0]), settings, output)
    return _chosen(steps, args.options.get("--from", ""), last)


def settings_of(argv: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words without `--set`, and what was set. Raises ConfigError (2)."""
    rest: list[str] = []
    settings: dict[str, list[str]] = {}
    words = [_SHORT.get(word, word) for word in argv]
    while words:
        word = words.pop(0)
        if word == "--set" or word.startswith("--set="):
            text = word.removeprefix("--set=") if word != "--set" else words.pop(0) if words else ""
            key, is_pair, value = text.partition("=")
            if not key or not is_pair:
                raise ConfigError(f"--set {text}: expected SECTION.OPTION=VALUE, like train.lr=2e-4")
            settings.setdefault(key, []).append(value)
        else:
            rest.append(word)
    return rest, settings


def _chosen(steps: list[Step], first: str, last: str) -> list[Step]:
    names = [step.name for step in steps]
    for flag, name in (("--from", first), ("--to", last)):
        if name and name not in names:
            raise ConfigError(f"{flag} {name}: no such section{closest(name, names)}; there are {', '.join(names)}")
    start = names.index(first) if first else 0
    end = names.index(last) + 1 if last else len(names)
    if start >= end:
        raise ConfigError(f"--from {first} comes after --to {last}: nothing to run")
    return steps[start:end]


def _run_all(steps: list[Step], flags: list[str], *, quiet: bool) -> list[Done]:
    """Run the steps until one fails."""
    done: list[Done] = []
    for step in steps:
        if any(one.code for one in done):
            done.append(Done(step.name, "not run", str(step.output)))
        else:
            done.append(_run_one(step, flags, quiet=quiet))
    return done


def _run_one(step: Step, flags: list[str], *, quiet: bool) -> Done:
    """One process, unless its output is there. Its stdout is its report; its stderr is ours."""
    shown = step.command
    is_made_again = "--replace" in flags or "--force" in flags  # then the stage itself looks at what is there, once
    try:
        step = pinned(step)
        stale = "" if is_made_again else _why_stale(step)
    except (ArtifactError, ConfigError) as error:
        return Done(step.name, "failed", str(step.output), code=error.code, fault=str(error))
    if stale:
        remedy = "pass --replace to make it again, or choose another -o"
        return Done(step.name, "stale", str(step.output), code=EXISTS, fault=f"{step.output}: stale: {stale}; {remedy}")
    if stale is None:
        return Done(step.name, "up to date", str(step.output))
    if not quiet:
        sys.stderr.write(f"$ {shown}\n")
        sys.stderr.flush()
    started = time.monotonic()
    ended = run_child([*step.argv, *flags, "--json"], capture=True)
    seconds = round(time.monotonic() - started, 1)
    code = ended.code
    if code:
        named = {75: "stopped, run again"}.get(code, "failed") if code > 0 else signal.Signals(-code).name
        return Done(step.name, named, str(step.output), seconds, code if code > 0 else FAILED)
    said: dict[str, Any] = msgspec.json.decode(ended.report)
    status = str(said["status"]).replace("-", " ")
    return Done(step.name, status, str(step.output), seconds, digest=str(said["digest"]))


def _why_stale(step: Step) -> str | None:
    """What the output of a step was made from instead; empty if there is none yet, None if it is up to date."""
    from postmill.io.manifest import MANIFEST, load_artifact

    if not (step.output / MANIFEST).is_file():
        return ""
    from postmill.stages.runner import find_inputs, job_of, why_other

    job = job_of(step.stage, step.config, find_inputs(step.stage, step.inputs))
    return why_other(step.stage, job, load_artifact(step.output))


def pinned(step: Step) -> Step:
    """The step with the newest commit in place of each branch of a hub, asked for once in a run.

    Without that, a branch that moves while a chain runs gives its stages different models.
    """
    inputs = {name: [_pin(step.stage.inputs[name], text) for text in values] for name, values in step.inputs.items()}
    return msgspec.structs.replace(step, inputs=inputs)


def _pin(port: Port, text: str) -> str:
    repository: Repository | None = None
    after = ""
    if port.resolver and any(text.startswith(prefix) for prefix in PREFIXES):
        # a count chooses rows by the words of its reference, so those stay
        name, colon, subsets = _without_prefix(text)
        repository = None if "#" in text else parse_repository(name, "dataset")
        after = colon + subsets
    elif {"model", "adapter", "tokenizer"} & set(port.kinds):
        repository = hub_model(text)
    if repository is None:
        return text
    commit = newest_commit(repository)
    return f"{repository.hub}:{repository.name}@{commit}{after}" if commit else text


def _without_prefix(text: str) -> tuple[str, str, str]:
    """`hf:owner/name`, and the colon and subsets behind it."""
    prefix = next(prefix for prefix in PREFIXES if text.startswith(prefix))
    name, colon, subsets = text.removeprefix(prefix).partition(":")
    return prefix + name, colon, subsets


def table(done: list[Done]) -> str:
    """What ran, for people."""
    rows = [("stage", "status", "seconds", "output")]
    for one in done:
        status = f"{one.status} ({one.code})" if one.code else one.status
        seconds = "" if one.status == "not run" else f"{one.seconds:,.1f}"
        rows.append((one.stage, status, seconds, "" if one.status == "not run" else one.output))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows]
    return "\n".join(lines) + "\n"
