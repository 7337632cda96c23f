"""One recipe by each program that it is written for, told to stop on the way and started again.

usage: python tests/exports.py [FORM...]     prints the table of docs/pipelines.md
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import tiny_model
import tiny_tokenizer

from postmill.cli.chain import find_recipe, read_steps
from postmill.cli.export import FORMS
from postmill.io.manifest import MANIFEST, load_artifact

ROOT = Path(__file__).resolve().parents[1]
SLURM = """#!/bin/sh
# Slurm on one machine: jobs in the order they are submitted, requeued when they ask for it. FAKE_STOP names a job that
# is told to stop once, when it is at work.
set -eu
id=$(($(cat "$FAKE/last" 2> /dev/null || echo 0) + 1)); echo "$id" > "$FAKE/last"
cat > "$FAKE/job-$id"
for word; do case $word in
  --job-name=*) name=${word#*=};;
  --dependency=afterok:*) for need in $(echo "${word#*:}" | tr : ' '); do
    [ "$(cat "$FAKE/code-$need")" = 0 ] || { echo 1 > "$FAKE/code-$id"; echo "$id"; exit 0; }
  done;;
esac; done
while :; do
  rm -f "$FAKE/requeue-$id"
  SLURM_JOB_ID=$id sh "$FAKE/job-$id" >&2 & job=$!
  if [ "$name" = "${FAKE_STOP:-}" ] && [ ! -e "$FAKE/killed" ]; then
    until [ -s out/train.checkpoints/metrics.jsonl ]; do sleep 0.05; done
    touch "$FAKE/killed"; kill -TERM $job
  fi
  code=0; wait $job || code=$?
  [ -e "$FAKE/requeue-$id" ] || break
done
echo $code > "$FAKE/code-$id"; echo "$name $code" >> "$FAKE/log"; echo "$id"
"""
_SCONTROL = '#!/bin/sh\ntouch "$FAKE/requeue-$2"\n'
AIRFLOW = """
# what Airflow's task runner does with each task: SIGTERM is `on_kill`, and the task is tried again or failed
import runpy, signal, sys
from airflow.sdk.exceptions import AirflowException, AirflowFailException
tasks = runpy.run_path("file")["tasks"]
left = dict(tasks)
while left:
    task = next(task for name, task in left.items() if not task.upstream_task_ids & left.keys())
    signal.signal(signal.SIGTERM, lambda *_: task.on_kill())
    try:
        left.pop(task.task_id).execute({})
    except AirflowFailException as error:
        sys.exit(f"failed: {error}")
    except AirflowException as error:
        sys.exit(f"up for retry: {error}")
"""
COMMANDS = {
    "run": [],
    "shell": ["sh", "file"],
    "make": ["make", "-s", "-f", "file"],
    "slurm": ["sh", "file", "--partition", "x"],
    "snakemake": ["snakemake", "-c1", "-q", "-s", "file"],
    "dvc": ["dvc", "repro"],
    "airflow": ["airflow", "-c", AIRFLOW],
    "ray": ["ray", "file"],
}
"""Form -> the command that runs `file`. The first word may be a program of `make programs`."""
_FILES = {"dvc": "dvc.yaml"}
_PYTHONS = ("airflow", "kubernetes", "ray")
SETTINGS = {"train.steps": "30", "train.bins_per_step": "1", "train.rank": "2", "train.epochs": "1"}
SECTIONS = ("tokenize", "pack", "train", "merge")
_WAIT_S = 1500


class Told(NamedTuple):
    """What one command did."""

    code: int
    said: str
    seconds: float


def other(name: str) -> str | None:
    """Another program, from the environment that `make programs` fills, or the path; None where it is not."""
    found = ROOT / ".cache" / name / "bin" / ("python" if name in _PYTHONS else name)
    return str(found) if found.exists() else shutil.which(name)


def write_programs(folder: Path) -> dict[str, str]:
    """`postmill` and a Slurm of one machine, in a folder; the variables with which they are found."""
    folder.mkdir()
    for name, text in (
        ("sbatch", SLURM),
        ("scontrol", _SCONTROL),
        ("postmill", f'#!/bin/sh\nexec {sys.executable} -P -m postmill.cli.main "$@"\n'),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE": str(folder)}


def write_world(folder: Path) -> None:
    """A model of a few thousand parameters and chats for it."""
    tiny_model.write_model(folder / "base", vocab_size=263)
    (folder / "base" / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.write_tokenizer(folder / "base")
    (folder / "chats.jsonl").write_text("".join(f'{{"query": "q{i}", "response": "in there"}}\n' for i in range(40)))


class Run:
    """The recipe `sft` in one form, in a folder of its own."""

    def __init__(self, form: str, world: Path, folder: Path) -> None:
        self.form, self.folder = form, folder
        folder.mkdir()
        for name in ("base", "chats.jsonl"):
            (folder / name).symlink_to(world / name)
        self._environment = (
            os.environ
            | write_programs(folder / "bin")
            | {
                "AIRFLOW_HOME": str(folder / "airflow"),
                "RAY_worker_niceness": "0",
                "RAY_raylet_start_wait_time_s": "600",  # it gives up after a minute, which others may need
            }
        )
        self._argv = self._write()

    def _write(self) -> list[str]:
        if self.form == "run":
            sets = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
            return ["postmill", "run", "sft", "chats.jsonl", "-m", "base", "-o", "out", *sets]
        said = {"model": ["base"], "data": ["chats.jsonl"]} | {key: [value] for key, value in SETTINGS.items()}
        before = Path.cwd()
        os.chdir(self.folder)  # paths of a recipe are those of the working directory
        try:
            Path(_FILES.get(self.form, "file")).write_text(
                FORMS[self.form](read_steps(find_recipe("sft"), said, Path("out")))
            )
        finally:
            os.chdir(before)
        program, *rest = COMMANDS[self.form]
        if self.form == "dvc":
            subprocess.run([str(other("dvc")), "init", "--no-scm", "-q"], cwd=self.folder, check=True)
        return [other(program) or program, *rest]

    def start(self) -> subprocess.Popen[str]:
        said = (self.folder / "said").open("w")
        return subprocess.Popen(
            self._argv, cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            text=True, start_new_session=True,
        )  # fmt: skip

    def to_end(self) -> Told:
        """The command to its end."""
        return self._end(self.start(), time.monotonic())

    def stopped(self) -> Told:
        """The command, told to stop (SIGTERM) when training is at work, to its end and that of what it had started."""
        started = time.monotonic()
        if self.form == "slurm":
            self._environment |= {"FAKE_STOP": "train"}  # the cluster tells the job; who submitted it may be gone
            return self._end(self.start(), started)
        child = self.start()
        metrics = self.folder / "out" / "train.checkpoints" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_bytes()) and child.poll() is None:
            assert time.monotonic() - started < _WAIT_S, (self.folder / "said").read_text()
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        told = self._end(child, started)
        while (self.folder / "out" / ".train.lock").exists():  # a stage saves after a program that did not wait
            assert time.monotonic() - started < _WAIT_S, "the stage was not told"
            time.sleep(0.05)
        return told

    def _end(self, child: "subprocess.Popen[str]", started: float) -> Told:
        try:
            code = child.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
        return Told(code, (self.folder / "said").read_text(errors="replace"), time.monotonic() - started)

    def is_done(self, section: str) -> bool:
        return (self.folder / "out" / section / MANIFEST).is_file()

    def digests(self) -> list[str]:
        return [load_artifact(self.folder / "out" / name).digest for name in SECTIONS]


def main(forms: list[str]) -> None:
    """Print the table: what each program makes when it was told to stop in training and started again."""
    with tempfile.TemporaryDirectory(prefix="postmill-") as name:
        folder = Path(name)
        write_world(folder)
        sys.stdout.write("| program | " + " | ".join(SECTIONS) + " | until it was stopped | and to the end |\n|---|")
        sys.stdout.write("---|" * (len(SECTIONS) + 2) + "\n")
        for form in forms or COMMANDS:
            if COMMANDS[form] and other(COMMANDS[form][0]) is None:
                sys.stdout.write(f"| {form} | not installed |\n")
                continue
            run = Run(form, folder, folder / form)
            cut = run.stopped()
            was_cut = not run.is_done("merge")
            rest = run.to_end()
            if rest.code or not (was_cut or form == "slurm"):
                sys.stdout.write(f"| {form} | {cut} {rest} |\n")
                continue
            digests = " | ".join(f"`{digest.rpartition(':')[2][:8]}`" for digest in run.digests())
            sys.stdout.write(f"| {form} | {digests} | {cut.seconds:.0f} s | {rest.seconds:.0f} s |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
