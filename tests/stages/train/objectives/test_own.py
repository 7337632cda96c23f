"""A loss of one's own in a file: it trains as ours does, its content is in the key, and what it gets wrong is said."""

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402

from postmill.cli.stage_command import parse  # noqa: E402
from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402

from . import laws  # noqa: E402

MINE = """
def loss(outputs, batch, norm):
    nll = -(batch.weights_T * outputs.logp_T).sum()
    return nll / norm, {"my_nll": nll}

def vector(outputs, batch, norm):
    return outputs.logp_T

def number(outputs, batch, norm):
    return 1.0

def constant(outputs, batch, norm):
    return outputs.logp_T.detach().sum()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own")
    base = tiny_model.write_model(folder / "base")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(14, seed=3))
    (folder / "mine.py").write_text(MINE)
    return folder


def train(world, target, objective="own", function="loss", **options):
    ports = {"packed": [str(world / "packed")], "model": [str(world / "base")]}
    if function:
        ports["own_loss"] = [f"{world / 'mine.py'}:{function}"]
    cfg = make(Train, objective=objective, **({"bins_per_step": 4, "steps": 3, "lr": 1e-2} | options))
    return run_stage(STAGE, cfg, ports, target, Options(threads=1))


def test_cross_entropy_of_ones_own_is_sft(world, tmp_path):
    train(world, tmp_path / "mine")
    train(world, tmp_path / "sft", "sft", "")
    mine, ours = laws.lines(tmp_path / "mine"), laws.lines(tmp_path / "sft")
    for x, y in zip(mine, ours, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["my_nll"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)


def test_the_content_of_the_file_is_in_the_key(world, tmp_path):
    first = train(world, tmp_path / "run")
    assert train(world, tmp_path / "run").status == "up-to-date"
    (world / "mine.py").write_text(MINE + "\n# changed\n")
    with pytest.raises(ArtifactError, match="own_loss"):
        train(world, tmp_path / "run")
    (world / "mine.py").write_text(MINE)
    assert load_artifact(tmp_path / "run").manifest.key == first.manifest.key


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("vector", "returned a tensor of shape .*, expected a scalar"),
        ("number", "returned float, expected a scalar"),
        ("constant", "what it returned has no gradient"),
    ],
)
def test_what_is_no_loss_is_said(world, tmp_path, function, message):
    with pytest.raises(StageError, match=message):
        train(world, tmp_path / "no", function=function)


def test_the_flag_names_file_and_function(world, tmp_path):
    for argv in (["--objective", "mine.py:loss"], ["--objective=mine.py:loss"]):
        call = parse(STAGE, ["packed/", "-m", "base/", *argv, "--own.stats", "logp"])
        assert call.inputs["own_loss"] == ["mine.py:loss"]
        assert call.said["objective"][-1].value == "own"
    with pytest.raises(ConfigError, match="no such function; the file has loss, vector, number, constant"):
        train(world, tmp_path / "no", function="lost")
    with pytest.raises(ConfigError, match="go together; write --objective file"):
        train(world, tmp_path / "no", function="")
    with pytest.raises(ConfigError, match="go together"):
        train(world, tmp_path / "no", "sft", "loss")
