"""`estimate` says what a run needs from a config and headers, without torch, and what two real steps needed."""

import json
import subprocess
import sys

import pytest

from postmill.cli.estimate import read, run
from postmill.io.errors import ConfigError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def asked(capsys, *argv):
    assert run([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_8b_model_needs_what_people_know_it_needs(model, capsys):
    """Weights, gradients and AdamW's state of full training: 16 bytes a weight."""
    found = asked(capsys, "-m", model, "--tuner", "full", "--kind", "h100", "--ranks", "8")
    assert found["parameters"] == pytest.approx(8.03e9, rel=0.001)
    parts = {part["name"]: part["expected"] for part in found["memory"]}
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == pytest.approx(16 * 8.03e9, rel=0.001)
    assert not found["fits"]
    assert "--shard fsdp" in " ".join(change["flags"] for change in found["changes"])
    flags = found["changes"][0]["flags"].split()
    assert asked(capsys, "-m", model, "--tuner", "full", "--kind", "h100", "--ranks", "8", *flags)["fits"]


def test_layouts_of_many_gpus(model, capsys):
    argv = ["-m", model, "--tuner", "full", "--gpus", "64", "--kind", "h100", "--bins-per-step", "64"]
    found = asked(capsys, *argv, "--bin-tokens", "8192")
    assert found["layouts"][0]["tokens_per_second"] > 64 * 4000
    assert run(argv) == 0
    assert "tokens/s" in capsys.readouterr().out


def test_people_read_a_table(model, capsys):
    assert run(["-m", model, "--memory", "24", "--bin-tokens", "4096"]) == 0
    text = capsys.readouterr().out
    for word in ("8,030,261,248 weights", "memory of a rank", "activations", "disk", "may not fit in 24.0 GiB"):
        assert word in text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--kind", "abacus"], "expected one of cpu, h100"),
        (["--probe"], "needs a packed artifact"),
        (["--gpus", "8"], "pass --kind"),
        (["--ranks", "none", "--kind", "h100"], "expected a number from 1 up"),
        (["--memory", "much"], "expected GiB"),
        (["--ranks", "8", "--kind", "h100", "--bins-per-step", "6"], "not a multiple of 8 data ranks"),
    ],
)
def test_bad_requests_are_refused(model, argv, says):
    with pytest.raises(ConfigError, match=says):
        run(["-m", model, *argv])


def test_it_loads_no_torch(model):
    code = "import sys; from postmill.cli.estimate import run; run(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "-m", model], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_probe_is_near_the_estimate(tmp_path, capsys):
    pytest.importorskip("torch")
    import tiny_model

    base = tiny_model.write_model(tmp_path / "base", hidden_size=256, intermediate_size=704, num_hidden_layers=6)
    packed = tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(60, longest=400), row_tokens=512)
    argv = [str(packed), "-m", str(base), "--tuner", "full", "--bins-per-step", "2"]
    assert read(argv).bin_tokens <= 512
    found = asked(capsys, *argv, "--probe")
    expected = found["memory"][-1]["expected"]
    assert expected == pytest.approx(found["probe"]["peak"], rel=0.15)
    assert found["probe"]["step_seconds"] > 0
