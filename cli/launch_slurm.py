"""`postmill launch --on slurm`: one sbatch job, waited for, that goes back into the queue when it stopped safely.

The script runs `postmill launch` once a machine. Slurm's warning before the time limit is a SIGTERM, after which the
stage saves its state and leaves with 75; the job is then requeued, and goes on from there.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from postmill.io.errors import STOPPED, UNAVAILABLE, StageError

if TYPE_CHECKING:
    from postmill.cli.launch import Job

_WARNING_S = 300
"""How long before the time limit a job is told to stop; a checkpoint of a large model takes minutes."""

_SCRIPT = """#!/bin/bash
#SBATCH --job-name=postmill-{stage}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@{warning}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export POSTMILL_MASTER="$head:$((20000 + SLURM_JOB_ID % 20000))"
srun --kill-on-bad-exit=0 bash -c {launch} &
step=$!
trap 'told=1; kill -TERM $step' TERM INT
# a wait also ends when a signal comes; then the step's end is still to be waited for
while true; do told=; wait $step; code=$?; [ -n "$told" ] || break; done
if [ $code -eq {stopped} ] && [ $((${{SLURM_RESTART_COUNT:-0}})) -lt {restarts} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""
_RESTARTS = 1000


def script(job: "Job") -> str:
    """What sbatch is given."""
    inner = [sys.executable, "-m", "postmill.cli.main", "launch", "--ranks", str(job.ranks)]
    inner += ["--nodes", str(job.nodes), "--hang-s", f"{job.hang_s:.0f}"]
    launch = f'exec {shlex.join(inner)} --node "$SLURM_NODEID" --master "$POSTMILL_MASTER" {shlex.join(job.command)}'
    return _SCRIPT.format(
        stage=job.command[0],
        nodes=job.nodes,
        warning=_WARNING_S,
        launch=shlex.quote(launch),
        stopped=STOPPED,
        restarts=_RESTARTS,
    )


def submit(job: "Job") -> int:
    """Submit, wait, and return the job's exit code. Raises StageError (69) without sbatch, or if it refuses."""
    if shutil.which("sbatch") is None:
        raise StageError("launch: sbatch: not found; run this where Slurm's commands are", UNAVAILABLE)
    with tempfile.TemporaryDirectory(prefix="postmill-slurm-") as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script(job))
        done = subprocess.run(["sbatch", "--wait", *job.sbatch, str(path)], stdout=sys.stderr, check=False)
    return done.returncode
