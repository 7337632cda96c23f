"""`launch` watches real processes: it ends a job when a rank dies, stops or hangs, says which, and keeps exit codes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from postmill.cli import launch
from postmill.cli.launch_slurm import submit
from postmill.cli.launch_watch import Watch, _is_stopped, start
from postmill.io.errors import ConfigError, StageError

RANK = "import os, sys, time, signal, pathlib; rank = int(os.environ['RANK']); beat = os.environ['POSTMILL_BEAT']\n"
GOES_ON = "\nfor _ in range(20000):\n    pathlib.Path(beat).touch()\n    time.sleep(0.02)\n"
"""Longer than a test may take, so a job that is over was ended."""
TOGETHER = """
def wait_for(count, name):
    pathlib.Path(beat).with_name(f"{name}-{rank}").touch()
    while len(list(pathlib.Path(beat).parent.glob(f"{name}-*"))) < count:
        time.sleep(0.02)
"""
LIMIT_S = 120
"""For whatever should happen: a machine may be busy."""


def watch(tmp_path, script, ranks=3, hang_s=0.0):
    environments = launch.environments(launch.Job(["train"], ranks))
    return Watch(start([sys.executable, "-c", RANK + script], environments, tmp_path), hang_s)


def ended_by(found):
    """What the job ended with. A job that goes on is killed, and ends with nothing."""
    late = threading.Timer(LIMIT_S, found.end)
    late.start()
    try:
        found.wait()
    finally:
        late.cancel()
        found.end()


def wait_until(happened, what):
    end = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_a_rank_that_dies_ends_the_job_and_is_named(tmp_path):
    with pytest.raises(StageError, match="rank 1 was ended by SIGKILL") as error:
        ended_by(watch(tmp_path, "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)" + GOES_ON))
    assert error.value.code == 1


def test_the_dead_rank_is_named_though_its_peers_fail_first(tmp_path):
    """A peer notices a lost connection and leaves with 70 before or after."""
    script = TOGETHER + "wait_for(3, 'up')\n"
    script += "if rank == 2: time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(70)"
    with pytest.raises(StageError, match="rank 2 was ended by SIGKILL"):
        ended_by(watch(tmp_path, script))


def test_a_stopped_rank_ends_the_job_and_is_named(tmp_path):
    with pytest.raises(StageError, match=r"rank 2 is stopped \(SIGSTOP\)"):
        ended_by(watch(tmp_path, "if rank == 2: os.kill(os.getpid(), signal.SIGSTOP)" + GOES_ON))


def test_a_job_that_is_paused_whole_is_left_alone(tmp_path):
    found = watch(tmp_path, "os.kill(os.getpid(), signal.SIGSTOP)")

    def go_on():
        try:
            wait_until(lambda: all(_is_stopped(rank.child.pid) for rank in found._ranks), "the ranks do not stop")
            time.sleep(1.2)  # so that the watch looks twice
        finally:
            found.pass_on(signal.SIGCONT, None)

    threading.Thread(target=go_on).start()
    ended_by(found)
    assert all(rank.code == 0 for rank in found._ranks)


def test_a_rank_that_hangs_is_named_with_what_all_were_doing(tmp_path, capfd):
    script = "import faulthandler; faulthandler.register(signal.SIGUSR1)\n"
    # its last sign is old from the start: on a busy machine any rank may be silent for seconds
    script += (
        "def in_the_collective():\n    pathlib.Path(beat).touch()\n    os.utime(beat, (time.time() - 5000,) * 2)\n"
    )
    script += f"    time.sleep({LIMIT_S})\n"
    script += "if rank == 1: in_the_collective()" + GOES_ON
    with pytest.raises(StageError, match=r"rank 1 gave no sign of life for 50\d\d s"):
        ended_by(watch(tmp_path, script, hang_s=2000.0))
    assert "in in_the_collective" in capfd.readouterr().err


@pytest.mark.parametrize(("codes", "code"), [((0, 0, 0), 0), ((75, 75, 75), 75), ((70, 70, 65), 65), ((2, 2, 2), 2)])
def test_the_code_is_that_of_the_rank_that_failed_first(tmp_path, codes, code):
    script = TOGETHER + f"wait_for(3, 'up')\nsys.exit({codes}[rank])"
    assert watch(tmp_path, script).wait() == code


def test_ranks_of_several_machines_count_on():
    told = launch.environments(
        launch.parse(["--ranks", "2", "--nodes", "2", "--node", "1", "--master", "a:4", "train", "x"])
    )
    assert [(t["RANK"], t["LOCAL_RANK"], t["WORLD_SIZE"], t["MASTER_ADDR"], t["MASTER_PORT"]) for t in told] == [
        ("2", "0", "4", "a", "4"),
        ("3", "1", "4", "a", "4"),
    ]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--ranks 2 --nodes 2 train", "pass --master HOST:PORT"),
        ("--ranks 2 --nodes 2 --node 2 --master a:1 train", "machines of 2 count from 0"),
        ("--ranks 2 --on moon train", "expected slurm or ssh"),
        ("--ranks 2 --on ssh train", "--on ssh and --host go together"),
        ("--ranks 2 --host a train", "--on ssh and --host go together"),
        ("--ranks 2 --on ssh --host a --host b --nodes 3 train", "there are 2 of --host"),
        ("--ranks 2 --sbatch --exclusive train", "only with --on slurm"),
        ("--ranks 2 --hang-s soon train", "expected a number from 0 up"),
        ("--steps 3 train", "expected --ranks N before the stage"),
    ],
)
def test_bad_requests_are_refused(argv, says):
    with pytest.raises(ConfigError, match=says):
        launch.parse(argv.split())


FAKES = {
    # sbatch runs the script at once, again when it was requeued, and leaves with its code, as `sbatch --wait` does
    "sbatch": """
        for last; do script=$last; done
        echo "$@" >> $FAKE/sbatch.txt
        restarts=0
        while true; do
          rm -f $FAKE/requeue
          SLURM_JOB_ID=7 SLURM_JOB_NODELIST=n[0-1] SLURM_RESTART_COUNT=$restarts bash $script; code=$?
          [ -f $FAKE/requeue ] || exit $code
          restarts=$((restarts + 1))
        done""",
    "scontrol": """
        if [ $1 = requeue ]; then touch $FAKE/requeue; else echo localhost; echo other; fi""",
    # a task a machine, all on this one; the code of the step is the highest of the tasks'
    "srun": """
        shift
        trap 'told=1; kill -TERM $tasks' TERM
        for node in 0 1; do SLURM_NODEID=$node "$@" & tasks="$tasks $!"; done
        code=0
        for task in $tasks; do
          while true; do told=; wait $task; found=$?; [ -n "$told" ] || break; done
          [ $found -gt $code ] && code=$found
        done
        exit $code""",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's commands, and a `python` that tells what it was asked to run and leaves with the next code of a list."""
    fakes = tmp_path / "bin"
    fakes.mkdir()
    python = f"""
        echo "$@" >> {tmp_path}/ran-$SLURM_NODEID.txt
        turn=$(wc -l < {tmp_path}/ran-$SLURM_NODEID.txt)
        exit $(sed -n ${{turn}}p {tmp_path}/codes.txt)"""
    for name, text in (FAKES | {"python": python}).items():
        (fakes / name).write_text("#!/bin/bash\n" + text)
        (fakes / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{fakes}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(fakes / "python"))
    return tmp_path


@pytest.mark.parametrize(("codes", "turns"), [([0], 1), ([65], 1), ([75, 75, 0], 3), ([75, 79], 2)])
def test_slurm_keeps_exit_codes_and_queues_75_again(slurm, codes, turns):
    (slurm / "codes.txt").write_text("".join(f"{code}\n" for code in codes))
    job = launch.parse(
        [
            "--on",
            "slurm",
            "--nodes",
            "2",
            "--ranks",
            "4",
            "--sbatch",
            "--time=5",
            "train",
            "packed/",
            "-m",
            "base/",
            "-o",
            "run/",
        ]
    )
    assert submit(job) == codes[-1]
    for node in (0, 1):
        ran = (slurm / f"ran-{node}.txt").read_text().splitlines()
        assert len(ran) == turns
        assert (
            f"launch --ranks 4 --nodes 2 --hang-s 1800 --node {node} --master localhost:20007 train packed/" in ran[0]
        )
    assert (slurm / "sbatch.txt").read_text().startswith("--wait --time=5 ")


def test_slurms_warning_reaches_the_ranks(slurm):
    """The batch script gets SIGTERM before the time limit; the stage's 75 then comes back."""
    python = Path(sys.executable)
    python.write_text(f"#!/bin/bash\ntrap 'exit 75' TERM\ntouch {slurm}/up-$SLURM_NODEID\nsleep {LIMIT_S} & wait\n")
    text = launch_script(launch.parse(["--on", "slurm", "--nodes", "2", "--ranks", "1", "train", "x"]))
    (slurm / "job.sh").write_text(text)
    env = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n"}
    child = subprocess.Popen(["bash", str(slurm / "job.sh")], env=env)
    wait_until(lambda: len(list(slurm.glob("up-*"))) == 2, "the ranks do not start")
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=LIMIT_S) == 75
    assert (slurm / "requeue").exists()


def launch_script(job):
    from postmill.cli.launch_slurm import script

    return script(job)


def test_without_slurm_the_error_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StageError, match="sbatch: not found") as error:
        submit(launch.parse(["--on", "slurm", "--ranks", "1", "train", "x"]))
    assert error.value.code == 69


RUN = """
import sys
from postmill.cli import launch

fake = sys.argv.pop(1)
sys.executable = fake
sys.exit(launch.run(sys.argv[1:]))
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """An ssh that runs its command here; `python` there does what a test writes into it."""
    fakes = tmp_path / "bin"
    fakes.mkdir()
    (fakes / "ssh").write_text(f'#!/bin/bash\necho "$3" >> {tmp_path}/hosts.txt\nHOST=$3 exec bash -c "$4"\n')
    (fakes / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fakes}:{os.environ['PATH']}")

    def python(text):
        (fakes / "python").write_text("#!/bin/bash\n" + text)
        (fakes / "python").chmod(0o755)
        return str(fakes / "python")

    return python


@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((75, 75), 75), ((70, 65), 65), ((0, 79), 79)])
def test_ssh_keeps_exit_codes(ssh, tmp_path, monkeypatch, codes, code):
    seen = tmp_path / "seen"
    text = f'echo "$@" > {seen}-$HOST\nwhile [ $(ls {seen}-* | wc -l) -lt 2 ]; do sleep 0.02; done\n'
    monkeypatch.setattr(sys, "executable", ssh(text + f"[ $HOST = u@a ] && exit {codes[0]}\nexit {codes[1]}\n"))
    job = launch.parse(["--on", "ssh", "--host", "u@a", "--host", "b", "--ranks", "4", "train", "my packed", "-m", "m"])
    assert submit_ssh(job) == code
    for node, host in enumerate(("u@a", "b")):
        told = Path(f"{seen}-{host}").read_text()
        assert f"launch --ranks 4 --nodes 2 --node {node} --master a:" in told
        assert told.endswith("--hang-s 1800 --until-eof train my packed -m m\n")


def submit_ssh(job):
    from postmill.cli import launch_ssh

    return launch_ssh.submit(job)


def test_an_ssh_that_fails_is_named(ssh, monkeypatch):
    monkeypatch.setattr(sys, "executable", ssh("[ $HOST = b ] && exit 255; exec cat\n"))
    with pytest.raises(StageError, match="b: ssh failed") as error:
        submit_ssh(launch.parse(["--on", "ssh", "--host", "a", "--host", "b", "--ranks", "1", "train", "x"]))
    assert error.value.code == 69


def test_a_signal_ends_the_input_of_every_machine(ssh, tmp_path):
    """And the end of input, of a `launch` there, is a SIGTERM for its ranks."""
    there = ssh(f"touch {tmp_path}/up-$HOST; cat > /dev/null; exit 75\n")
    argv = [sys.executable, "-c", RUN, there, "--on", "ssh", "--host", "a", "--host", "b", "--ranks", "1", "train", "x"]
    child = subprocess.Popen(argv)
    wait_until(lambda: len(list(tmp_path.glob("up-*"))) == 2, "the machines do not start")
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=LIMIT_S) == 75


def test_the_end_of_input_is_a_sigterm_for_the_ranks(ssh, tmp_path):
    rank = ssh(f"trap 'exit 75' TERM\ntouch {tmp_path}/up-$RANK\nsleep {LIMIT_S} & wait\n")
    argv = [sys.executable, "-c", RUN, rank, "--ranks", "2", "--until-eof", "train", "x"]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE)
    wait_until(lambda: len(list(tmp_path.glob("up-*"))) == 2, "the ranks do not start")
    child.stdin.close()
    assert child.wait(timeout=LIMIT_S) == 75
