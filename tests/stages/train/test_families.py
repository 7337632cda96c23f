"""What families have of their own: trained, or refused in one line that names it."""

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

import tiny_model  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.stages.shared import attention  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402


def write(folder, name, **config):
    settings = {"vocab_size": tiny_model.VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
    made = getattr(transformers, f"{name}Config")(**(settings | config))
    getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(made).save_pretrained(
        folder
    )
    return folder


def adapters(path, **lora):
    kernel = attention.choose("auto", torch.device("cpu"), torch.float32)
    model = tiny_model.start(Lora(rank=2, **lora), path, kernel)
    return {
        name.rpartition(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name
    }


def test_linear_layers_of_gpt2_get_adapters(tmp_path, recwarn):
    """hunt 65: its layers are Conv1D, which is no nn.Linear. hunt 83: nobody is told of it."""
    assert adapters(write(tmp_path, "GPT2")) == {"c_attn", "c_proj", "c_fc"}
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]


def test_a_family_with_attention_of_its_own_is_refused_by_name(tmp_path):
    """hunt 66"""
    path = write(tmp_path, "GPTJ", rotary_dim=4)
    with pytest.raises(ArtifactError, match="gptj models compute attention in a way of their own") as caught:
        adapters(path)
    assert caught.value.code == 78


def test_names_of_modules(tmp_path):
    """hunt 88: a typo in modules to train whole. hunt 89: commas between targets."""
    path = tiny_model.write_model(tmp_path)
    assert adapters(path, targets=["q_proj,v_proj"]) == {"q_proj", "v_proj"}
    wanted = r"--lora.modules-to-save embed_token: no such module; there are .*embed_tokens"
    with pytest.raises(ConfigError, match=wanted):
        adapters(path, modules_to_save=["embed_token"])
