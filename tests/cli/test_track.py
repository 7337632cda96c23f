"""`track` gives each step once, while a run goes on, after it, and across a stop; TensorBoard reads what is written."""

import json
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from postmill.cli import track
from postmill.cli.event_file import EventFile, crc32c
from postmill.io.errors import ArtifactError, ConfigError

ROOT = Path(__file__).resolve().parents[2]
TRACKERS = ROOT / ".cache" / "trackers"


def write(folder: Path, steps: range, loss: float = 0.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "loss": loss + step / 2, "name": "x", "finite": True} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def records(data: bytes) -> list[bytes]:
    """What is in an event file, each checksum checked."""
    found = []
    while data:
        [length] = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        for part, at in ((data[:8], 8), (body, 12 + length)):
            crc = crc32c(part)
            [said] = struct.unpack("<I", data[at : at + 4])
            assert said == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
        found.append(body)
        data = data[16 + length :]
    return found


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_a_record_is_the_event_of_the_specification(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.add(300, {"loss": 1.5})
    file.close()
    [made] = tmp_path.iterdir()
    version, event = records(made.read_bytes())
    assert version.endswith(b"\x1a\x0dbrain.Event:2")
    assert event[9:] == b"\x10\xac\x02" + b"\x2a\x0d" + b"\x0a\x0b" + b"\x0a\x04loss" + b"\x15" + struct.pack("<f", 1.5)


def test_each_step_once_from_a_run_that_is_stopped_and_goes_on(tmp_path: Path) -> None:
    """The run's lines come while it is followed; after a stop it repeats two steps; then it is finished."""
    output, checkpoints = tmp_path / "run", tmp_path / "run.checkpoints"
    seen: list[tuple[int, float]] = []
    came = threading.Semaphore(0)

    def follow() -> None:
        for step, numbers in track.points(output, follow=True):
            seen.append((step, numbers["loss"]))
            came.release()

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    write(checkpoints, range(1, 4))
    for _ in range(3):
        assert came.acquire(timeout=60)
    write(checkpoints, range(1, 2))  # what the checkpoint held
    write(checkpoints, range(1, 6))
    for _ in range(2):
        assert came.acquire(timeout=60)
    write(output, range(1, 8))
    (output / "manifest.json").write_text("{}")
    reader.join(60)
    assert seen == [(step, step / 2) for step in range(1, 8)]


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 3))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [step for step, _ in track.points(tmp_path / "run", follow=False)] == [1, 2]


def test_the_command_writes_a_file_that_replays_are_equal_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", range(1, 6))
    for _ in range(2):
        assert track.run([str(tmp_path / "run"), "--to", "tensorboard", "-o", str(tmp_path / "logs")]) == 0
    assert "track: 5 steps to tensorboard" in capsys.readouterr().err
    [made] = (tmp_path / "logs" / "run").iterdir()
    assert len(records(made.read_bytes())) == 6


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean tensorboard"):
        track.run(["x", "--to", "tensorbord"])
    with pytest.raises(ConfigError, match="pass --to TRACKER; there are tensorboard, wandb"):
        track.run(["x"])
    with pytest.raises(ArtifactError, match="pass --follow to wait"):
        track.run([str(tmp_path / "none"), "--to", "tensorboard"])


RECORDS = """
import glob, struct
def records(path):
    # what LevelDB's log format holds, after a header of 7 bytes
    data, at, part = open(path, "rb").read(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield part
            part = b""
"""
READ = {
    "wandb": RECORDS
    + """
import json
from wandb.proto.wandb_internal_pb2 import Record
found = []
for data in records(*glob.glob("logs/wandb/offline-run-*/*.wandb")):
    record = Record.FromString(data)
    if record.HasField("history"):
        said = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
        found.append((said["_step"], float(said["loss"])))
print(found)
""",
    "swanlab": RECORDS
    + """
from swanlab.proto.swanlab.record.v1.record_pb2 import Record
said = [Record.FromString(data) for data in records(*glob.glob("logs/run-*/*.swanlab"))]
print([(one.scalar.step, one.scalar.value.number) for one in said if one.HasField("scalar")])
""",
    "tensorboard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator("logs/run"); events.Reload()
print([(one.step, one.value) for one in events.Scalars("loss")])
""",
    "mlflow-skinny": """
import mlflow
[run] = mlflow.search_runs(experiment_names=["postmill"], output_format="list")
print([(one.step, one.value) for one in mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")])
""",
    "trackio": """
from trackio.sqlite_storage import SQLiteStorage
print([(one["step"], one["loss"]) for one in SQLiteStorage.get_logs("postmill", "run")])
""",
}
"""How each package reads back what it was told."""


@pytest.mark.slow
@pytest.mark.parametrize("package", READ)
def test_the_package_reads_back_every_step(package: str, tmp_path: Path) -> None:
    """Packages lie in .cache/trackers, each in a folder of its own (`make programs`)."""
    if not (TRACKERS / package).is_dir() or not any((TRACKERS / package).iterdir()):
        pytest.skip(f"no {package} in {TRACKERS}")
    write(tmp_path / "run", range(1, 6))
    env = {
        "PYTHONPATH": str(TRACKERS / package), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": f"file:{tmp_path}/mlruns", "TRACKIO_DIR": str(tmp_path / "trackio"),
        "WANDB_MODE": "offline", "SWANLAB_MODE": "offline",
    }  # fmt: skip
    name = package.removesuffix("-skinny")
    argv = [sys.executable, "-m", "postmill.cli.main", "track", "run", "--to", name]
    subprocess.run(argv, cwd=tmp_path, env=env, check=True, timeout=250)
    read = subprocess.run(
        [sys.executable, "-c", READ[package]],
        cwd=tmp_path,
        env=env,
        check=True,
        timeout=250,
        capture_output=True,
        text=True,
    )
    assert read.stdout.strip().splitlines()[-1] == str([(step, step / 2) for step in range(1, 6)])
