"""A head that predicts several tokens is said by name: it is neither trained nor saved."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from postmill.stages.train.left_out import mtp_tensors, say_left_out

LAYERS = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(3)]
HEADS = {
    "deepseek": ["model.layers.3.eh_proj.weight", "model.layers.3.shared_head.head.weight"],
    "qwen3-next": ["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"],
    "mimo": ["model.mtp_layers.0.input_proj.weight"],
    "wrapped": ["model.language_model.layers.3.eh_proj.weight"],
    "none": [],
}


def write(folder, names, **config):
    folder.mkdir()
    tensors = {name: np.zeros(2, np.float32) for name in [*LAYERS, "lm_head.weight", *names]}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", HEADS)
def test_tensors_of_the_head_are_found_and_no_others(tmp_path, name):
    layers = {"text_config": {"num_hidden_layers": 3}} if name == "wrapped" else {"num_hidden_layers": 3}
    folder = write(tmp_path / "base", HEADS[name], **layers)
    assert mtp_tensors(folder) == sorted(HEADS[name])


@pytest.mark.parametrize(("makes", "fate"), [("model", "is not in the result"), ("adapter", "stays as it is")])
def test_what_becomes_of_it_is_said(tmp_path, capsys, makes, fate):
    say_left_out(write(tmp_path / "base", HEADS["mimo"], num_hidden_layers=3), makes)
    said = capsys.readouterr().err
    assert "base has a head that predicts several tokens (1 tensors, like model.mtp_layers.0.input_proj.weight)" in said
    assert fate in said
    say_left_out(write(tmp_path / "plain", [], num_hidden_layers=3), makes)
    assert capsys.readouterr().err == ""
