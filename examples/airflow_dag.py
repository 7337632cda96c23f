"""The same job as an Airflow DAG: plain BashOperators, one a stage.

Nothing of Airflow reaches into a stage, and nothing of Postmill into Airflow: a task is a command and its exit code.

- 0 is done or "up to date": a cleared task, a second trigger or a backfill costs a second, since content keys tell.
- Any other code fails the task, and Airflow tries it again. That is meant for 75 (stopped safely: the same command goes
  on, bitwise) and 69 (a hub or service is away). Faults of data and options (65, 66, 2, 78) come back at once with the
  same line, before any work, so trying again costs nothing either.
- 99, Airflow's code for "skip", is never a stage's.

Folders must be on a disk that all workers see. Set MODEL, CHATS, QUESTIONS, RECIPE and OUT as Airflow variables.
"""

from datetime import timedelta

from airflow import DAG
from airflow.providers.standard.operators.bash import BashOperator

COMMANDS = {
    "tokenize": "postmill tokenize $CHATS -m $MODEL -o $OUT/tokens @ $RECIPE",
    "pack": "postmill pack $OUT/tokens -o $OUT/packed @ $RECIPE",
    "train": "exec postmill train $OUT/packed -m $MODEL -o $OUT/run @ $RECIPE",
    "merge": "postmill merge $OUT/run -o $OUT/tuned @ $RECIPE",
    "eval": "postmill eval $OUT/tuned --ask $QUESTIONS --before $MODEL -o $OUT/answers @ $RECIPE",
}
"""In order. `exec`: SIGTERM from Airflow reaches the stage itself, which saves and says 75."""
NAMES = ("MODEL", "CHATS", "QUESTIONS", "RECIPE", "OUT")

with DAG("postmill", schedule=None, max_active_runs=1, params={}):
    before = None
    for name, command in COMMANDS.items():
        task = BashOperator(
            task_id=name,
            bash_command=command,
            env={variable: f"{{{{ var.value.{variable} }}}}" for variable in NAMES},
            append_env=True,
            retries=20 if name == "train" else 2,
            retry_delay=timedelta(seconds=30),
        )
        if before is not None:
            before >> task
        before = task
