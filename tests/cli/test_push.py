"""`postmill push`: what arrives at the hub is the artifact, bit for bit, with a card that its manifest wrote."""

import json

import commands
import pytest

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("peft")
pytest.importorskip("huggingface_hub", reason="pip install 'postmill[hub]'")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model
from fake_hub import COMMIT, fake_hub

from postmill.cli.card import card
from postmill.io.manifest import load_artifact, verify_files
from postmill.stages.options import make
from postmill.stages.runner import Options, run_stage
from postmill.stages.train.config import STAGE, Train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    base = tiny_model.write_model(folder / "base")
    packed = tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(4))
    cfg = make(Train, steps=1, rank=2, bins_per_step=1)
    run_stage(STAGE, cfg, {"packed": [str(packed)], "model": [str(base)]}, folder / "run", Options(threads=1))
    return folder / "run"


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub").mkdir()
    with fake_hub(tmp_path / "hub") as found:
        yield found


def push(hub, tmp_path, *argv):
    environment = hub.environment(tmp_path) | {"HF_TOKEN": "hf_test", "MODELSCOPE_API_TOKEN": "ms-test"}
    return commands.postmill("push", *argv, env=environment)


def test_the_artifact_arrives_whole_with_a_card(run, hub, tmp_path):
    done = push(hub, tmp_path, run, "mill/tiny", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/mill/tiny/commit/{COMMIT}\n"
    assert hub.made[0]["name"] == "tiny"
    assert "private" in str(hub.made[0])  # a key of its own in older clients
    arrived = load_artifact(tmp_path / "hub" / "mill" / "tiny")
    assert arrived.digest == load_artifact(run).digest
    assert [fault.rpartition("/")[2] for fault in verify_files(arrived)] == ["README.md: not in the manifest"]
    assert not (arrived.path / "run.json").exists()  # which says where it was made
    text = (arrived.path / "README.md").read_text("utf-8")
    front, body = text.split("---\n")[1:]
    assert 'library_name: "peft"' in front
    assert '"postmill", "train"' in front
    assert "made by `postmill train`" in body
    assert "| `tuner.rank` | 2 |" in body
    assert "| `loss` |" in body
    assert arrived.manifest.key in body


def test_the_artifact_arrives_at_modelscope(run, hub, tmp_path):
    done = push(hub, tmp_path, run, "ms:mill/tiny", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/models/mill/tiny\n"
    made = hub.made[0]
    assert (made["Path"], made["Name"]) == ("mill", "tiny")
    assert made["Visibility"] == 1  # private
    arrived = load_artifact(tmp_path / "hub" / "mill" / "tiny")
    assert arrived.digest == load_artifact(run).digest
    assert [fault.rpartition("/")[2] for fault in verify_files(arrived)] == ["README.md: not in the manifest"]
    assert len(hub.asked("POST", "/commit/master")) == 1
    again = push(hub, tmp_path, run, "ms:mill/tiny", "-q")  # into what is there now
    assert again.returncode == 0, again.stderr
    assert len(hub.asked("POST", "/commit/master")) == 2


def test_a_card_names_a_base_of_the_hub(run):
    artifact = load_artifact(run)
    assert "base_model" not in card(artifact, "mill/tiny")  # "base" is only the folder's name
    manifest = artifact.manifest
    entries = [
        entry if entry.port != "model" else type(entry)(entry.port, entry.kind, entry.digest, f"hf:mill/base@{COMMIT}")
        for entry in manifest.inputs
    ]
    fetched = type(artifact)(artifact.path, type(manifest)(**vars_of(manifest) | {"inputs": entries}), artifact.digest)
    text = card(fetched, "mill/tiny")
    assert 'base_model: "mill/base"' in text
    assert 'base_model_relation: "adapter"' in text


def vars_of(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def test_a_dry_run_sends_nothing(run, hub, tmp_path):
    done = push(hub, tmp_path, run, "mill/tiny", "--dry-run")
    assert done.returncode == 0
    assert "# mill/tiny" in done.stdout
    assert "adapter_model.safetensors\n" in done.stdout
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("tiny", 2, "tiny: expected OWNER/NAME of Hugging Face"),
        ("mill/tiny/more", 2, "expected OWNER/NAME of Hugging Face, or ms:OWNER/NAME"),
        (
            "ms:mill/tiny",
            66,
            "ms:mill/tiny: not written (.*); check the name and the branch, and log in with",
        ),
        ("mill/tiny", 66, "not written (.*); check the name, and log in with hf auth login"),
    ],
)
def test_what_cannot_be_sent_is_one_line(run, hub, tmp_path, name, code, words):
    hub.readonly = True
    done = push(hub, tmp_path, run, name, "-q")
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    for part in words.split(".*"):
        assert part in done.stderr


def test_a_damaged_file_is_not_sent(run, hub, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    done = push(hub, tmp_path, copy, "mill/tiny")
    assert done.returncode == 65
    assert hub.requests == []
