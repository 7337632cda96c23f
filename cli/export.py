"""A recipe as a file for another program: make, a shell, Airflow, Snakemake, DVC, Slurm.

Each runs the very commands that `postmill run` runs, so content keys and digests are the same, and each part can be
run again. In all of them 75 and 69 are tried again, and every other exit code fails at once.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from postmill.cli.chain import Step
from postmill.io.errors import ConfigError
from postmill.io.manifest import MANIFEST
from postmill.io.model_folder import ADAPTER_CONFIG

_NOTE = (
    "Made by `postmill recipe export`; edit the recipe and make it again.",
    "Folders stand for artifacts; one that is up to date is not made again, whatever its time says.",
)


def _note() -> str:
    return "".join(f"# {line}\n" for line in _NOTE)


def _argv(step: Step) -> list[str]:
    """The command of a step, which replaces what other options have made."""
    return ["postmill", *step.argv, "--replace"]


def _again(step: Step) -> str:
    """A line for a shell that comes back only when the step is done or will not be."""
    return shlex.join(["postmill", "again", *_argv(step)[1:]])


def local_inputs(step: Step, outputs: set[str]) -> list[str]:
    """Files that tell whether inputs of a step have changed, of those that no step makes."""
    found: list[str] = []
    for name, values in step.inputs.items():
        for value in values:
            text = value.partition("=")[2] if step.stage.inputs[name].named else value
            path = Path(text)
            if text in outputs:
                continue
            marks = [path / MANIFEST, path / "config.json", path / ADAPTER_CONFIG]
            mark = path if path.is_file() else next((mark for mark in marks if mark.is_file()), None)
            if mark is not None and str(mark) not in found:
                found.append(str(mark))
    return found


def to_shell(steps: list[Step]) -> str:
    """A script that ends with the exit code of the stage that stopped."""
    body = "".join(f"{_again(step)} > /dev/null\n" for step in steps)
    return f"#!/bin/sh\n{_note()}set -eu\n\n{body}"


def to_make(steps: list[Step]) -> str:
    """A Makefile whose targets are manifests. Raises ConfigError (2) for paths that make cannot hold."""
    outputs = {str(step.output) for step in steps}
    made = {step.name: f"{step.output}/{MANIFEST}" for step in steps}
    rules = []
    for step in steps:
        needs = [made[name] for name in dict.fromkeys(step.needs)] + local_inputs(step, outputs)
        for path in (made[step.name], *needs):
            if any(letter in path for letter in " \t\n:#%$\\"):
                raise ConfigError(f"{path}: make cannot hold this path; choose one without blanks, colons and #%$\\")
        # an artifact that was up to date keeps its time, so the time of the target says that it was looked at
        command = _again(step).replace("$", "$$")
        if "\n" in command:
            raise ConfigError(
                f"{step.name}: make cannot hold an option of several lines; put it into a file, or use shell"
            )
        rules.append(f"{made[step.name]}: {' '.join([*needs, '$(THIS)'])}\n\t{command} > /dev/null\n\ttouch $@\n")
    head = "# usage: make -f FILE\n\nSHELL := /bin/sh\nTHIS := $(firstword $(MAKEFILE_LIST))\n.PHONY: all\n"
    return f"{_note()}{head}all: {' '.join(made.values())}\n\n" + "\n".join(rules)


def to_snakemake(steps: list[Step]) -> str:
    """A Snakefile. Its outputs are stamps: Snakemake removes what a rule makes before it runs, and artifacts last."""
    outputs = {str(step.output) for step in steps}

    def text(value: str) -> str:
        return repr(value.replace("{", "{{").replace("}", "}}"))

    def stamp(step: Step) -> str:
        return str(step.output.parent / ".done" / step.name)

    stamps = {step.name: stamp(step) for step in steps}
    parts = [f"{_note()}\nrule all:\n    input: {', '.join(text(one) for one in stamps.values())}\n"]
    for step in steps:
        needs = [stamps[name] for name in dict.fromkeys(step.needs)] + local_inputs(step, outputs)
        name = "".join(letter if letter.isalnum() else "_" for letter in step.name)
        parts.append(
            f"rule stage_{name}:\n"
            + (f"    input: {', '.join(text(one) for one in needs)}\n" if needs else "")
            + f"    output: touch({text(stamps[step.name])})\n"
            + f"    shell: {text(_again(step) + ' > /dev/null')}\n"
        )
    return "\n".join(parts)


def to_dvc(steps: list[Step]) -> str:
    """A dvc.yaml. Outputs stay in place (`persist`) and out of DVC's cache: they have digests of their own."""
    import msgspec

    outputs = {str(step.output) for step in steps}
    stages = {}
    for step in steps:
        made = [str(other.output) for other in steps if other.name in step.needs]
        stages[step.name] = {
            "cmd": _again(step).replace("${", "\\${") + " > /dev/null",
            "deps": [*dict.fromkeys(made), *local_inputs(step, outputs)],
            "outs": [{str(step.output): {"cache": False, "persist": True}}],
        }
    # JSON is YAML, and needs no second opinion about quoting
    return _note() + msgspec.json.format(msgspec.json.encode({"stages": stages}), indent=2).decode() + "\n"


_SLURM_HEAD = """#!/bin/sh
{note}# usage: sh FILE [options of sbatch for all jobs, as --partition gpu --time 4:00:00]
set -eu

"""
_SLURM_JOB = """{variable}=$(sbatch --parsable --requeue --signal=B:TERM@120 \\
    --job-name={name}{after} "$@" <<'POSTMILL_JOB'
#!/bin/sh
{command} > /dev/null &
child=$!
trap 'kill -TERM "$child"' TERM
code=0; wait "$child" || code=$?
# a signal ends the first wait, not the stage: it saves, and says 75
while kill -0 "$child" 2> /dev/null; do code=0; wait "$child" || code=$?; done
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
POSTMILL_JOB
)
"""


def to_slurm(steps: list[Step]) -> str:
    """A script that submits a job a stage, each after those whose outputs it needs."""
    names = {step.name: "job_" + "".join(c if c.isalnum() else "_" for c in step.name) for step in steps}
    parts = [_SLURM_HEAD.format(note=_note())]
    for step in steps:
        needs = ":".join(f"${names[name]}" for name in dict.fromkeys(step.needs))
        after = f' --kill-on-invalid-dep=yes --dependency="afterok:{needs}"' if needs else ""
        variable = names[step.name]
        name = shlex.quote(step.name)
        command = shlex.join(_argv(step))
        parts.append(_SLURM_JOB.format(variable=variable, name=name, after=after, command=command))
    return "".join(parts)


_AIRFLOW = '''"""{note}"""

import signal
import subprocess
from datetime import timedelta

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

AGAIN = (75, 69)
"""Stopped safely, and a service that is not there: tried again. Every other code fails the task at once."""
STAGES = {stages}
"""Stage -> its command, and the stages it comes after."""


class Stage(BaseOperator):
    """A command, without a shell. Told to stop, the stage saves and says 75."""

    def __init__(self, *, command, **options):
        super().__init__(**options)
        self.command = command
        self.child = None

    def execute(self, context):
        self.child = subprocess.Popen(self.command)
        code = self.child.wait()
        if code in AGAIN:
            raise AirflowException(f"{{self.command[1]}}: exit code {{code}}: the same command goes on")
        if code:
            raise AirflowFailException(f"{{self.command[1]}}: exit code {{code}}: trying again would not help")

    def on_kill(self):
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            self.child.wait()


with DAG({name!r}, schedule=None, max_active_runs=1):
    tasks = {{}}
    for name, (command, before) in STAGES.items():
        tasks[name] = Stage(task_id=name, command=command, retries=20, retry_delay=timedelta(seconds=30))
        for needed in before:
            tasks[needed] >> tasks[name]
'''


def to_airflow(steps: list[Step], name: str = "postmill") -> str:
    """A DAG for Airflow 3. Nothing of postmill is imported where the DAG is parsed."""
    import pprint

    stages = {step.name: (_argv(step), list(dict.fromkeys(step.needs))) for step in steps}
    shown = pprint.pformat(stages, width=118, sort_dicts=False)
    return _AIRFLOW.format(note="\n".join(_NOTE), stages=shown, name=name)


FORMS: dict[str, Callable[[list[Step]], str]] = {
    "shell": to_shell,
    "make": to_make,
    "airflow": to_airflow,
    "snakemake": to_snakemake,
    "dvc": to_dvc,
    "slurm": to_slurm,
}
"""Name -> what writes it."""
