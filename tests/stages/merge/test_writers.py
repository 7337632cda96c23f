"""Adapters as other programs leave them: the same numbers under their names and beside their files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from adapters import LLAMA, merge, save_adapter, save_base, tensors  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402

FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A base, PEFT's own adapter on it, and what that one merges to."""
    folder = tmp_path_factory.mktemp("made")
    base = save_base(folder / "base", transformers.LlamaConfig(tie_word_embeddings=False, **LLAMA))
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "k_proj", "v_proj"], modules_to_save=["lm_head"]
    )
    save_adapter(folder / "adapter", base, config)
    merge([folder / "adapter"], base, folder / "out")
    return base, folder / "adapter", tensors(folder / "out")


def settings(adapter: Path, **changed: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def rename(adapter: Path, change: Callable[[str], str]) -> None:
    save_file({change(n): t for n, t in load_file(adapter / FILE).items()}, adapter / FILE)


def ms_swift(adapter: Path) -> None:
    """`output/v0-.../checkpoint-100` with its side files."""
    settings(
        adapter, base_model_name_or_path="/mnt/workspace/.cache/modelscope/hub/models/Qwen/Qwen3-8B", lora_bias=False
    )
    (adapter / "additional_config.json").write_text('{"lora_dtype": null, "lorap_lr_ratio": null}')
    (adapter / "args.json").write_text('{"model": "Qwen/Qwen3-8B", "train_type": "lora"}')
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (adapter / name).write_bytes(b"\x80\x02pickle")
    (adapter / "trainer_state.json").write_text("{}")


def trl(adapter: Path) -> None:
    """A Trainer's folder: pickled arguments, a README, the chat template."""
    (adapter / "training_args.bin").write_bytes(b"\x80\x02pickle")
    (adapter / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    (adapter / "chat_template.jinja").write_text("{{ messages }}")


def axolotl(adapter: Path) -> None:
    """Saved while the model was compiled, under FSDP."""
    rename(adapter, lambda n: n.replace("base_model.model.", "base_model.model._orig_mod._fsdp_wrapped_module."))


def llama_factory(adapter: Path) -> None:
    """`additional_target`: the module saved whole keeps its wrapper's name."""
    rename(adapter, lambda n: n.replace("lm_head.weight", "lm_head.modules_to_save.weight"))


def unsloth(adapter: Path) -> None:
    """Trained on the 4-bit copy of the model; a field that only it writes."""
    settings(adapter, base_model_name_or_path="unsloth/tiny-unsloth-bnb-4bit", unsloth_fixed=True)


def vllm(adapter: Path) -> None:
    """As engines hold it: q, k and v packed into one module, sharing A."""
    stored = load_file(adapter / FILE)
    packed = {n: t for n, t in stored.items() if ".self_attn." not in n}
    for layer in range(2):
        place = f"base_model.model.model.layers.{layer}.self_attn"
        b = [stored[f"{place}.{x}_proj.lora_B.weight"] for x in "qkv"]
        a = [stored[f"{place}.{x}_proj.lora_A.weight"] for x in "qkv"]
        packed[f"{place}.qkv_proj.lora_A.weight"] = torch.cat(a)
        packed[f"{place}.qkv_proj.lora_B.weight"] = torch.block_diag(*b)
    save_file(packed, adapter / FILE)
    settings(adapter, r=12, lora_alpha=18, target_modules=["qkv_proj"])


@pytest.mark.parametrize("writer", [ms_swift, trl, axolotl, llama_factory, unsloth, vllm])
def test_other_writers(tmp_path: Path, made: Any, writer: Callable[[Path], None]) -> None:
    base, adapter, wanted = made
    shutil.copytree(adapter, tmp_path / "adapter")
    writer(tmp_path / "adapter")
    merge([tmp_path / "adapter"], base, tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)
    assert not [file for file in (tmp_path / "out").iterdir() if file.suffix in (".pt", ".pth", ".bin")]


def test_pickled_factors_are_refused(tmp_path: Path, made: Any) -> None:
    base, adapter, _ = made
    shutil.copytree(adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / FILE).rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ArtifactError, match=r"adapter_model\.bin: pickled weights can run code") as caught:
        merge([tmp_path / "adapter"], base, tmp_path / "out")
    assert caught.value.code == 77


@pytest.mark.parametrize(
    ("named", "original"),
    [
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "unsloth/Qwen3-8B"),
        ("unsloth/gemma-3-4b-it-bnb-4bit", "unsloth/gemma-3-4b-it"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
    ],
)
def test_a_quantized_base_is_refused_with_the_name_of_its_original(
    tmp_path: Path, made: Any, named: str, original: str
) -> None:
    base, adapter, _ = made
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "base")
    settings(tmp_path / "adapter", base_model_name_or_path=named)
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"pass the model before it was quantized \({original}\) with -m"):
        merge([tmp_path / "adapter"], tmp_path / "base", tmp_path / "out")


@pytest.mark.parametrize(
    ("named", "given", "warns"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", True),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "Qwen/Qwen3-8B", False),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", False),
        ("Qwen/Qwen3-8B", "", False),
        ("/data/my-model", "Qwen/Qwen3-8B", False),
    ],
)
def test_another_base_by_its_name_is_said(
    tmp_path: Path, made: Any, capsys: pytest.CaptureFixture[str], named: str, given: str, warns: bool
) -> None:
    base, adapter, _ = made
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "base")
    settings(tmp_path / "adapter", base_model_name_or_path=named)
    config = json.loads((base / "config.json").read_text()) | ({"_name_or_path": given} if given else {})
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    merge([tmp_path / "adapter"], tmp_path / "base", tmp_path / "out")
    assert (f"says it was trained on {named}" in capsys.readouterr().err) is warns
