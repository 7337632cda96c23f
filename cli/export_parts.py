"""What the forms of an exported recipe have in common: a note at the top, and the command of a step."""

import shlex
from pathlib import Path

from postmill.cli.chain import Step
from postmill.io.manifest import MANIFEST
from postmill.io.model_folder import ADAPTER_CONFIG

NOTE = (
    "Made by `postmill recipe export`; edit the recipe and make it again.",
    "Folders stand for artifacts; one that is up to date is not made again, whatever its time says.",
)


def note() -> str:
    """The note as comments."""
    return "".join(f"# {line}\n" for line in NOTE)


def argv_of(step: Step) -> list[str]:
    """The command of a step, which replaces what other options have made."""
    return ["postmill", *step.argv, "--replace"]


def again(step: Step) -> str:
    """A line for a shell that comes back only when the step is done or will not be; killing what waits for it stops it.

    A shell and DVC end at a signal and leave what they had started to itself.
    """
    return shlex.join(["postmill", "again", "--with-parent", *argv_of(step)[1:]])


def local_inputs(step: Step, outputs: set[str]) -> list[str]:
    """Files that tell whether inputs of a step have changed, of those that no step makes."""
    paths: list[str] = []
    for name, values in step.inputs.items():
        for value in values:
            text = value.partition("=")[2] if step.stage.inputs[name].named else value
            path = Path(text)
            if text in outputs:
                continue
            marks = [path / MANIFEST, path / "config.json", path / ADAPTER_CONFIG]
            mark = path if path.is_file() else next((mark for mark in marks if mark.is_file()), None)
            if mark is not None and str(mark) not in paths:
                paths.append(str(mark))
    return paths
