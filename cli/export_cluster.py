"""A recipe for a cluster's own programs: Slurm and Kubernetes."""

import shlex
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.again import AGAIN
from postmill.cli.chain import Step
from postmill.cli.export_parts import argv_of, note
from postmill.io.errors import ConfigError

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
    parts = [_SLURM_HEAD.format(note=note())]
    for step in steps:
        needs = ":".join(f"${names[name]}" for name in dict.fromkeys(step.needs))
        after = f' --kill-on-invalid-dep=yes --dependency="afterok:{needs}"' if needs else ""
        variable = names[step.name]
        name = shlex.quote(step.name)
        command = shlex.join(argv_of(step))
        parts.append(_SLURM_JOB.format(variable=variable, name=name, after=after, command=command))
    return "".join(parts)


_K8S_HEAD = """{note}#
# usage: kubectl apply -f FILE; kubectl logs -f job/{name} --all-containers
# The stages are containers of one Job, which run one after the other. 69 and 75 start its pod again, and what is done
# costs a second; any other exit code fails the Job at once, and so it stays until somebody looks.
# The image is one of docker/Dockerfile. Paths lie on the claim, which is mounted at {mount}: put data and models there.
"""
_MOUNT = "/work"
"""Where the images of docker/Dockerfile start."""
_GRACE_S = 120
"""Seconds that a stage has to save after SIGTERM."""


def to_k8s(steps: list[Step]) -> str:
    """A claim for a disk, and a Job whose containers are the stages in their order.

    Jobs do not wait for one another, but a pod's init containers do: what comes after a stage sees what it made, and
    never what an older recipe had made. Raises ConfigError (2) for a path that is not on the claim.
    """
    for step in steps:
        for text in [str(step.output), *(value for values in step.inputs.values() for value in values)]:
            if Path(text.rpartition("=")[2]).is_absolute():
                raise ConfigError(f"{text}: a pod sees only the claim; give paths from the working directory, as data/")
    name = _label(steps[-1].output.parent.name or "postmill", 50)
    containers = [_container(step) for step in steps]
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
        "initContainers": containers[:-1],
        "containers": containers[-1:],
        "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": name}}],
    }
    policy = {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
            {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": sorted(AGAIN)}},
        ]
    }
    spec = {"backoffLimit": 20, "podFailurePolicy": policy, "template": {"spec": pod}}
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "100Gi"}}}
    made = [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec},
    ]
    # JSON is YAML, and needs no second opinion about quoting
    shown = "---\n".join(msgspec.json.format(msgspec.json.encode(one), indent=2).decode() + "\n" for one in made)
    return _K8S_HEAD.format(note=note(), name=name, mount=_MOUNT) + shown


def _container(step: Step) -> dict[str, Any]:
    """A stage. Several ranks are processes of one container, with a GPU each."""
    gpus = {"limits": {"nvidia.com/gpu": step.ranks}} if step.ranks > 1 else {}
    return {
        "name": _label(step.name, 63),
        "image": "postmill:cpu" if step.ranks == 1 else "postmill:cuda",
        # `$(NAME)` in an argument would be a variable of Kubernetes
        "args": [word.replace("$(", "$$(") for word in argv_of(step)[1:]],
        "workingDir": _MOUNT,
        "resources": gpus,
        "volumeMounts": [{"name": "disk", "mountPath": _MOUNT}],
    }


def _label(text: str, longest: int) -> str:
    """A name that Kubernetes takes: small letters, digits and dashes (RFC 1123)."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower())
    return kept[:longest].strip("-") or "postmill"
