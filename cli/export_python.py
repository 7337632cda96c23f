"""A recipe as a Python program for Airflow or Ray. Neither needs postmill where the program is read."""

import pprint

from postmill.cli.again import AGAIN
from postmill.cli.chain import Step
from postmill.cli.export_parts import NOTE, argv_of
from postmill.io.errors import STOPPED

_AIRFLOW = '''"""{note}"""

import signal
import subprocess
from datetime import timedelta

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

AGAIN = {again}
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
        code = self.child.wait()  # on_kill comes in the middle of it
        if code in AGAIN:
            raise AirflowException(f"{{self.command[1]}}: exit code {{code}}: the same command goes on")
        if code:
            raise AirflowFailException(f"{{self.command[1]}}: exit code {{code}}: trying again would not help")

    def on_kill(self):
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)


with DAG({name!r}, schedule=None, max_active_runs=1):
    tasks = {{}}
    for name, (command, before) in STAGES.items():
        tasks[name] = Stage(task_id=name, command=command, retries=20, retry_delay=timedelta(seconds=30))
        for needed in before:
            tasks[needed] >> tasks[name]
'''


def to_airflow(steps: list[Step], name: str = "postmill") -> str:
    """A DAG for Airflow 3. Nothing of postmill is imported where the DAG is parsed."""
    return _AIRFLOW.format(note="\n".join(NOTE), again=AGAIN, stages=_shown(steps), name=name)


def _shown(steps: list[Step]) -> str:
    stages = {step.name: (argv_of(step), list(dict.fromkeys(step.needs))) for step in steps}
    return pprint.pformat(stages, width=118, sort_dicts=False)


_RAY = '''"""{note}

usage: python FILE, with RAY_ADDRESS for a cluster that runs. All of its machines see one disk, and have postmill.
"""

import os
import signal
import subprocess
import sys
import time

import ray

AGAIN = {again}
"""Stopped safely, and a service that is not there: tried again. Every other code ends the run at once."""
STOPPED = {stopped}
"""What this program ends with when it was told to stop."""
STAGES = {stages}
"""Stage -> its command, and the stages it comes after."""
GPUS = {gpus}
"""Stage -> the GPUs to keep for it."""
SHARDS = {shards}
"""Stage -> the tasks that share its rows before it puts them together: raise it to spread a large dataset."""


class Again(Exception):
    """The same command goes on."""


@ray.remote(max_retries=20, retry_exceptions=[Again])
def stage(name, command, folder, *before):
    """A command in `folder`, without a shell, unless one before it failed. Returns the name and code of what ended."""
    failed = [(needed, code) for needed, code in before if code]
    if failed:
        return failed[0]
    child = subprocess.Popen(command, cwd=folder)
    try:
        while child.poll() is None:  # Ray cannot interrupt a wait
            time.sleep(0.1)
    finally:
        if child.poll() is None:  # told to stop: the stage saves
            child.send_signal(signal.SIGTERM)
            child.wait()
    code = child.returncode
    if code in AGAIN:
        raise Again(f"{{name}}: exit code {{code}}")
    return name, code


def main():
    ray.init(ignore_reinit_error=True)
    tasks = {{}}
    for name, (command, before) in STAGES.items():
        task, needs = stage.options(num_gpus=GPUS.get(name, 0)), [tasks[needed] for needed in before]
        count = SHARDS.get(name, 1)
        shares = [f"{{number}}/{{count}}" for number in range(1, count + 1)] if count > 1 else []
        parts = [task.remote(name, [*command, "--shard", share], os.getcwd(), *needs) for share in shares]
        tasks[name] = task.remote(name, command, os.getcwd(), *needs, *parts)
    signal.signal(signal.SIGTERM, lambda *_: [ray.cancel(task) for task in tasks.values()])
    try:
        ended = ray.get(list(tasks.values()))
    except ray.exceptions.TaskCancelledError:
        ray.wait(list(tasks.values()), num_returns=len(tasks))
        return STOPPED
    for name, code in ended:
        if code:
            print(f"{{name}}: exit code {{code}}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
'''


def to_ray(steps: list[Step]) -> str:
    """A program that runs each stage as a task of Ray, side by side where none needs the other."""
    gpus = {step.name: step.ranks for step in steps if step.ranks > 1}
    shards = {step.name: 1 for step in steps if step.stage.shards}
    return _RAY.format(
        note="\n".join(NOTE), again=AGAIN, stopped=STOPPED, stages=_shown(steps), gpus=gpus, shards=shards
    )
