"""A recipe as a file for another program: make, a shell, Airflow, Snakemake, DVC, Slurm, Kubernetes, Ray.

Each runs the very commands that `postmill run` runs, so content keys and digests are the same, and each part can be
run again. In all of them 75 and 69 are tried again, and every other exit code fails at once.
"""

from collections.abc import Callable

from postmill.cli.chain import Step
from postmill.cli.export_cluster import to_k8s, to_slurm
from postmill.cli.export_parts import again, local_inputs, note
from postmill.cli.export_python import to_airflow, to_ray
from postmill.io.errors import ConfigError
from postmill.io.manifest import MANIFEST


def to_shell(steps: list[Step]) -> str:
    """A script that ends with the exit code of the stage that stopped."""
    body = "".join(f"{again(step)} > /dev/null\n" for step in steps)
    return f"#!/bin/sh\n{note()}set -eu\n\n{body}"


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
        command = again(step).replace("$", "$$")
        if "\n" in command:
            raise ConfigError(
                f"{step.name}: make cannot hold an option of several lines; put it into a file, or use shell"
            )
        rules.append(f"{made[step.name]}: {' '.join([*needs, '$(THIS)'])}\n\t{command} > /dev/null\n\ttouch $@\n")
    # a make that is stopped removes targets that are new: never a manifest
    head = "# usage: make -f FILE\n\nSHELL := /bin/sh\nTHIS := $(firstword $(MAKEFILE_LIST))\n.PHONY: all\n"
    goals = " ".join(made.values())
    return f"{note()}{head}.PRECIOUS: {goals}\nall: {goals}\n\n" + "\n".join(rules)


def to_snakemake(steps: list[Step]) -> str:
    """A Snakefile. Its outputs are stamps: Snakemake removes what a rule makes before it runs, and artifacts last."""
    outputs = {str(step.output) for step in steps}

    def text(value: str) -> str:
        return repr(value.replace("{", "{{").replace("}", "}}"))

    def stamp(step: Step) -> str:
        return str(step.output.parent / ".done" / step.name)

    stamps = {step.name: stamp(step) for step in steps}
    parts = [f"{note()}\nrule all:\n    input: {', '.join(text(one) for one in stamps.values())}\n"]
    for step in steps:
        needs = [stamps[name] for name in dict.fromkeys(step.needs)] + local_inputs(step, outputs)
        name = "".join(letter if letter.isalnum() else "_" for letter in step.name)
        parts.append(
            f"rule stage_{name}:\n"
            + (f"    input: {', '.join(text(one) for one in needs)}\n" if needs else "")
            + f"    output: touch({text(stamps[step.name])})\n"
            + f"    shell: {text(again(step) + ' > /dev/null')}\n"
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
            "cmd": again(step).replace("${", "\\${") + " > /dev/null",
            "deps": [*dict.fromkeys(made), *local_inputs(step, outputs)],
            "outs": [{str(step.output): {"cache": False, "persist": True}}],
        }
    # JSON is YAML, and needs no second opinion about quoting
    return note() + msgspec.json.format(msgspec.json.encode({"stages": stages}), indent=2).decode() + "\n"


FORMS: dict[str, Callable[[list[Step]], str]] = {
    "shell": to_shell,
    "make": to_make,
    "airflow": to_airflow,
    "snakemake": to_snakemake,
    "dvc": to_dvc,
    "slurm": to_slurm,
    "k8s": to_k8s,
    "ray": to_ray,
}
"""Name -> what writes it."""
