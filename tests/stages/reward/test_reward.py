"""The stage as a command: what it writes, what a bad function costs, what is copied."""

import json
import os
import subprocess
from pathlib import Path

import commands
import pyarrow as pa
import pytest
from rollouts_table import row_of, write_rollouts

from postmill.io.manifest import load_artifact
from postmill.io.packed import TOKENS
from postmill.io.rollouts import REWARDS
from postmill.io.schemas import REWARDS_V1, TOKENS_V1
from postmill.io.table import TableReader

TORTURE = """
import os, signal, time
CALLS = {calls!r}

def torture(row):
    what = row.columns.get("what", "")
    print("flood " * 100000)
    if what == "sleep":
        time.sleep(60)
    if what == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(0)
    if what == "parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if what == "raise":
        raise KeyError("no such thing")
    if what == "nan":
        return float("nan")
    if what == "text":
        return "1.0"
    if what == "memory":
        return len(bytearray(1 << 40))
    if what == "fork":
        if os.fork() == 0:
            time.sleep(600)
        time.sleep(600)
    return 1.0

async def patient(row):
    with open(CALLS, "a") as file:
        file.write("x")
    return float(row.sample)

class Stateful:
    def __init__(self):
        self.told = 0.5
    def __call__(self, row):
        return self.told
"""


def postmill(*argv: object) -> subprocess.CompletedProcess[str]:
    return commands.postmill("reward", *argv)


def lines(path: Path) -> list[dict]:
    batches = list(TableReader(path / REWARDS, REWARDS_V1))
    return pa.Table.from_batches(batches).to_pylist()


@pytest.fixture
def sums(tmp_path):
    rows = [row_of(0, s, text, solution="4") for s, text in enumerate(["4", "5", "four", "It is 4"])]
    rows += [row_of(1, s, "7", solution="7", num_tokens=s + 1) for s in range(3)]
    rows += [row_of(2, 0, "9", solution="9"), row_of(2, 1, None, solution="9")]
    return write_rollouts(tmp_path / "rollouts", rows)


def test_scores_rewards_and_advantages(sums, tmp_path):
    out = tmp_path / "rewards"
    done = postmill(
        sums, "--func", "number", "--func", "exact", "--weights", "1,0.5", "--advantage", "group_mean", "-o", out
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    found = lines(out)
    assert [line["scores"] for line in found[:4]] == [[1, 1], [0, 0], [0, 0], [1, 0]]
    assert [line["reward"] for line in found[:4]] == [1.5, 0, 0, 1]
    assert [line["advantage"] for line in found[:4]] == pytest.approx([0.875, -0.625, -0.625, 0.375])
    assert [line["group_kind"] for line in found] == ["mixed"] * 4 + ["best"] * 3 + ["few"] * 2
    assert found[-1]["reward"] is None
    assert found[-1]["drop_reason"] == "rollout_failed"
    assert found[-2]["advantage"] is None
    metrics = load_artifact(out).manifest.metrics
    assert metrics["groups"] == {"best": 1, "few": 1, "mixed": 1}
    assert metrics["functions"][0]["mean"] == pytest.approx(6 / 8)


def test_a_function_that_misbehaves_costs_its_row_alone(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(TORTURE.format(calls=str(tmp_path / "calls")))
    faults = ["sleep", "segv", "exit", "raise", "nan", "text", "memory", "fork", "parent"]
    rows = [row_of(n, 0, "7", what=faults[n // 5] if n % 5 == 0 else "") for n in range(5 * len(faults))]
    path = write_rollouts(tmp_path / "rollouts", rows)
    argv = (path, "--func", f"{file}:torture", "--time-limit-s", "1", "--max-failed", "0.5", "-o", tmp_path / "r")
    done = postmill(*argv, "--threads", "2")
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path / "r")
    reasons = [line["errors"][0]["reason"] for line in found[::5]]
    assert reasons == [
        "timeout",
        "crashed:SIGSEGV",
        "crashed:exit",
        "raised",
        "not_a_number",
        "wrong_type",
        "memory",
        "timeout",
        "crashed:exit",
    ]
    assert [line["reward"] for n, line in enumerate(found) if n % 5] == [1.0] * (4 * len(faults))
    assert all(line["reward"] is None for line in found[::5])
    # nothing that a function started is left
    ours = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(file).encode() in _read(p)]
    assert ours == []
    strict = postmill(path, "--func", f"{file}:torture", "--time-limit-s", "1", "-o", tmp_path / "s")
    assert strict.returncode == 65
    assert "failed on 9 of 45 rows" in strict.stderr
    assert not (tmp_path / "s").exists()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_scores_of_unchanged_functions_are_copied(sums, tmp_path):
    file, calls = tmp_path / "mine.py", tmp_path / "calls"
    file.write_text(TORTURE.format(calls=str(calls)))
    argv = (sums, "--func", f"{file}:patient", "--func", f"{file}:Stateful")
    assert postmill(*argv, "-o", tmp_path / "a").returncode == 0
    assert calls.stat().st_size == 8
    assert [line["scores"][1] for line in lines(tmp_path / "a")][:8] == [0.5] * 8
    again = postmill(*argv, "--func", "number", "--reuse", tmp_path / "a", "-o", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    assert calls.stat().st_size == 8
    assert [line["scores"][0] for line in lines(tmp_path / "b")] == [0, 1, 2, 3, 0, 1, 2, 0, None]
    assert [line["scores"][2] for line in lines(tmp_path / "b")][:4] == [1, 0, 0, 1]


@pytest.mark.parametrize("emit", ["pairs", "labels", "sft"])
def test_rows_to_train_on_balance_with_the_rollouts(sums, tmp_path, emit):
    out = tmp_path / "tokens"
    done = postmill(sums, "--func", "number", "--emit", emit, "-o", out)
    assert done.returncode == 0, done.stderr
    manifest = load_artifact(out, ("tokens",)).manifest
    assert manifest.counts is not None
    assert manifest.counts.is_balanced()
    assert manifest.counts.rows_in == 9
    rows = pa.Table.from_batches(list(TableReader(out / TOKENS, TOKENS_V1))).to_pylist()
    if emit == "pairs":
        assert [(row["side"], row["margin"]) for row in rows] == [(0, 1.0), (1, 1.0)]
        assert rows[0]["pair_id"] == rows[1]["pair_id"]
        assert manifest.counts.dropped == {"between": 2, "no_gap": 4, "rollout_failed": 1}
    elif emit == "labels":
        assert [row["label"] for row in rows] == [1, 0, 0, 1, 1, 1, 1, 1]
        assert all(row["pair_id"] is None for row in rows)
    else:
        assert [row["line"] for row in rows] == [1, 2, 3]
        assert manifest.counts.dropped == {"below_threshold": 2, "not_among_the_best": 3, "rollout_failed": 1}


def test_filters_leave_out_rows_with_a_reason(sums, tmp_path):
    def reasons(*argv: str) -> list[str | None]:
        out = tmp_path / "-".join(argv).replace("-", "")
        assert postmill(sums, "--func", "number", *argv, "-o", out).returncode == 0
        return [line["drop_reason"] for line in lines(out)]

    assert reasons("--keep", "mixed")[4:8] == ["same_rewards"] * 3 + ["few_rewards"]
    assert reasons("--max-pass", "0.9")[4:7] == ["too_easy"] * 3
    assert reasons("--min-pass", "0.6")[:4] == ["too_hard"] * 4
    assert "too_hard" not in reasons("--weights=-1"), "rewards below 0 are no fault of a prompt"


def test_rows_are_told_where_all_of_them_are_left_out(sums, tmp_path):
    out = tmp_path / "tokens"
    done = postmill(sums, "--func", "number", "--emit", "sft", "--threshold", "5", "-o", out)
    assert done.returncode == 0, done.stderr
    counts = load_artifact(out, ("tokens",)).manifest.counts
    assert counts is not None and (counts.rows_in, counts.kept, counts.num_dropped) == (9, 0, 9)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--func", "nothing"], 2, "no such function; there are exact"),
        (["--func", "absent.py:f"], 66, "no such file"),
        (["--func", "number", "--func", "number"], 2, "named twice"),
        (["--func", "number", "--weights", "1,2"], 2, "2 weights for 1 functions"),
        (["--func", "number", "--min-pass", "0.5", "--max-pass", "0.1"], 2, "is below min_pass"),
        (["--func", "BROKEN"], 2, "cannot be loaded: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(sums, tmp_path, argv, code, words):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    argv = [word.replace("BROKEN", f"{tmp_path}/broken.py:f") for word in argv]
    done = postmill(sums, *argv, "-o", tmp_path / "r")
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_same_rewards_have_the_same_digest_for_any_number_of_workers(sums, tmp_path):
    digests = []
    for threads in ("1", "2"):
        out = tmp_path / f"r{threads}"
        done = postmill(sums, "--func", "number", "--threads", threads, "--json", "-o", out)
        digests.append(json.loads(done.stdout)["digest"])
    assert digests[0] == digests[1]


def test_workers_see_no_secrets(sums, tmp_path):
    file = tmp_path / "spy.py"
    file.write_text("import os\ndef spy(row):\n    return float('MY_API_KEY' in os.environ)\n")
    os.environ["MY_API_KEY"] = "secret"
    try:
        assert postmill(sums, "--func", f"{file}:spy", "-o", tmp_path / "r").returncode == 0
    finally:
        del os.environ["MY_API_KEY"]
    assert [line["scores"] for line in lines(tmp_path / "r")][:8] == [[0.0]] * 8


def test_a_package_that_is_not_there_is_named(sums, tmp_path, monkeypatch):
    from postmill.io.errors import ConfigError
    from postmill.stages.reward import inputs

    def missing(name):
        raise inputs.PackageNotFoundError(name)

    monkeypatch.setattr(inputs, "version_of", missing)
    with pytest.raises(ConfigError, match="--func reasoning-gym:chain_sum: pip install reasoning-gym"):
        inputs.resolve("functions", "reasoning-gym:chain_sum")
