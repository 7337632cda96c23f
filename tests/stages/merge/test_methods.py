"""Every method that has a merge rule, against PEFT's own merge of the same adapter in float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from adapters import LLAMA, far_apart, load, merge, save_adapter, save_base, tensors  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.stages.merge.methods.table import METHODS, NO_WEIGHTS  # noqa: E402

TARGETS = ["q_proj", "up_proj", "down_proj"]
CASES: dict[str, Any] = {
    "adalora": lambda: peft.AdaLoraConfig(target_modules=TARGETS, total_step=9, init_r=5, lora_alpha=8),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(
        target_modules=TARGETS, r=4, alpha=6, rank_pattern={"up_proj": 3}, alpha_pattern={"q_proj": 9}
    ),
    "lokr": lambda: peft.LoKrConfig(target_modules=TARGETS, r=4, alpha=6),
    "lokr both": lambda: peft.LoKrConfig(target_modules=TARGETS, r=2, alpha=6, decompose_both=True),
    "lokr factor": lambda: peft.LoKrConfig(target_modules=TARGETS, r=2, alpha=6, decompose_factor=4),
    "oft series": lambda: peft.OFTConfig(target_modules=TARGETS, oft_block_size=8),
    "oft series of 3": lambda: peft.OFTConfig(target_modules=TARGETS, oft_block_size=4, num_cayley_neumann_terms=3),
    "oft solved": lambda: peft.OFTConfig(target_modules=TARGETS, r=4, oft_block_size=0, use_cayley_neumann=False),
    "oft shared": lambda: peft.OFTConfig(target_modules=TARGETS, oft_block_size=8, block_share=True),
    "oft bounded": lambda: peft.OFTConfig(target_modules=TARGETS, oft_block_size=8, coft=True, eps=0.3),
    "boft": lambda: peft.BOFTConfig(target_modules=TARGETS, boft_block_size=4),
    "hra": lambda: peft.HRAConfig(target_modules=TARGETS, r=4),
    "hra orthogonal": lambda: peft.HRAConfig(target_modules=TARGETS, r=4, apply_GS=True),
    "road 1": lambda: peft.RoadConfig(target_modules=TARGETS, group_size=8),
    "road 2": lambda: peft.RoadConfig(target_modules=TARGETS, group_size=4, variant="road_2"),
    "road 4": lambda: peft.RoadConfig(target_modules=TARGETS, group_size=4, variant="road_4"),
    "vera": lambda: peft.VeraConfig(target_modules=TARGETS, r=4),
    "pvera": lambda: peft.PveraConfig(target_modules=TARGETS, r=4),
    "randlora": lambda: peft.RandLoraConfig(target_modules=TARGETS, r=5),
    "vblora": lambda: peft.VBLoRAConfig(target_modules=TARGETS, r=3, num_vectors=20, vector_length=8),
    "vblora top": lambda: peft.VBLoRAConfig(
        target_modules=TARGETS, r=3, num_vectors=20, vector_length=8, topk=3, save_only_topk_weights=True
    ),
    "fourierft": lambda: peft.FourierFTConfig(target_modules=TARGETS, n_frequency=50, random_loc_seed=5, scaling=80),
    "c3a": lambda: peft.C3AConfig(target_modules=TARGETS, block_size=8),
    "miss": lambda: peft.MissConfig(target_modules=TARGETS, r=4),
    "miss uneven": lambda: peft.MissConfig(target_modules=TARGETS, r=5),
    "miss mini": lambda: peft.MissConfig(target_modules=TARGETS, r=4, mini_r=8, init_weights="mini"),
    "miss bat": lambda: peft.MissConfig(target_modules=TARGETS, r=4, init_weights="bat"),
    "shira": lambda: peft.ShiraConfig(target_modules=TARGETS, r=2),
    "hira": lambda: peft.HiraConfig(target_modules=TARGETS, r=4),
    "delora": lambda: peft.DeloraConfig(target_modules=TARGETS, r=4),
    "gralora": lambda: peft.GraloraConfig(target_modules=TARGETS, r=8, gralora_k=2),
    "gralora and lora": lambda: peft.GraloraConfig(target_modules=TARGETS, r=4, gralora_k=2, hybrid_r=2, alpha=7),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "tokens": lambda: peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[7, 3, 90]),
    "ia3 and a saved head": lambda: peft.IA3Config(
        target_modules=["q_proj"], feedforward_modules=[], modules_to_save=["lm_head"]
    ),
}  # fmt: skip
GPT2 = ["c_attn", "c_proj", "c_fc"]
TRANSPOSED: dict[str, Any] = {
    "adalora": lambda: peft.AdaLoraConfig(target_modules=GPT2, total_step=9, fan_in_fan_out=True),
    "ia3": lambda: peft.IA3Config(target_modules=GPT2, feedforward_modules=["c_proj"], fan_in_fan_out=True),
    "vera": lambda: peft.VeraConfig(target_modules=["c_proj"], r=4, fan_in_fan_out=True),
    "vblora": lambda: peft.VBLoRAConfig(
        target_modules=["c_proj"], r=3, num_vectors=20, vector_length=8, fan_in_fan_out=True
    ),
    "randlora": lambda: peft.RandLoraConfig(target_modules=GPT2, r=5, fan_in_fan_out=True),
    "fourierft": lambda: peft.FourierFTConfig(target_modules=GPT2, n_frequency=50, fan_in_fan_out=True),
    "hira": lambda: peft.HiraConfig(target_modules=GPT2, r=4),
}


def by_peft(base: Path, adapter: Path) -> dict[str, Any]:
    merged = peft.PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
    return dict(merged.state_dict())


def check(tmp_path: Path, base: Path, adapter: Path) -> None:
    """Each tensor within 1e-6 of the largest number in it, and something changed."""
    metrics = merge([adapter], base, tmp_path / "out")
    wanted, before = by_peft(base, adapter), tensors(base)
    found = tensors(tmp_path / "out")
    assert found.keys() >= before.keys()
    for name, tensor in found.items():
        assert far_apart(tensor, wanted[name]) < 1e-6, name
    assert metrics["num_changed"] + metrics["num_replaced"] > 0
    assert any(far_apart(found[name], before[name]) > 1e-4 for name in before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.LlamaConfig(tie_word_embeddings=False, attention_bias=True, **LLAMA)
    return save_base(tmp_path_factory.mktemp("models") / "llama", config)


@pytest.mark.parametrize("name", CASES)
def test_equals_peft(tmp_path: Path, llama: Path, name: str) -> None:
    save_adapter(tmp_path / "adapter", llama, CASES[name]())
    check(tmp_path, llama, tmp_path / "adapter")


@pytest.mark.parametrize("name", TRANSPOSED)
def test_equals_peft_where_weights_lie_transposed(tmp_path: Path, name: str) -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_inner=64, vocab_size=96, n_positions=64)
    base = save_base(tmp_path / "base", config)
    save_adapter(tmp_path / "adapter", base, TRANSPOSED[name]())
    check(tmp_path, base, tmp_path / "adapter")


def test_blocks_change_no_byte(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are computed alone: cut elsewhere, they are the same to the last float32 digits."""
    from postmill.stages.merge import arithmetic

    for name in ("lokr", "oft series", "hra", "c3a", "miss bat", "shira", "loha", "ia3"):
        adapter = tmp_path / name
        save_adapter(adapter, llama, CASES[name]())
        with monkeypatch.context() as patch:
            merge([adapter], llama, tmp_path / f"{name} whole")
            patch.setattr(arithmetic, "BLOCK_ELEMENTS", 5 * 32)
            merge([adapter], llama, tmp_path / f"{name} cut")
        one, other = tensors(tmp_path / f"{name} whole"), tensors(tmp_path / f"{name} cut")
        assert all(far_apart(one[key], other[key]) < 3e-7 for key in one), name


def test_bone_is_miss_under_its_first_name(tmp_path: Path, llama: Path) -> None:
    save_adapter(tmp_path / "miss", llama, CASES["miss"]())
    merge([tmp_path / "miss"], llama, tmp_path / "wanted")
    config = json.loads((tmp_path / "miss" / "adapter_config.json").read_text())
    (tmp_path / "bone").mkdir()
    (tmp_path / "bone" / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "BONE"}))
    stored = load_file(tmp_path / "miss" / "adapter_model.safetensors")
    renamed = {name.replace("miss_block", "bone_block"): tensor for name, tensor in stored.items()}
    save_file(renamed, tmp_path / "bone" / "adapter_model.safetensors")
    merge([tmp_path / "bone"], llama, tmp_path / "out")
    wanted = tensors(tmp_path / "wanted")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tensors(tmp_path / "out").items())


def test_boft_with_several_factors(tmp_path: Path, llama: Path) -> None:
    """PEFT makes these on a GPU only; its formula, from its own permutations, in float64."""
    save_adapter(tmp_path / "adapter", llama, peft.BOFTConfig(target_modules=["q_proj"], boft_block_size=4))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.manual_seed(5)
    stored = {
        name: torch.randn(3, 8, 4, 4) * 0.3 if name.endswith("boft_R") else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(stored, file)
    merge([tmp_path / "adapter"], llama, tmp_path / "out")
    layer_class = peft.tuners.boft.layer.Linear
    name = "model.layers.0.self_attn.q_proj"
    raw = stored[f"base_model.model.{name}.boft_R"].double()
    product = torch.eye(32, dtype=torch.float64)
    for number, blocks in enumerate(raw):
        skew = 0.5 * (blocks - blocks.transpose(1, 2))
        eye = torch.eye(4, dtype=torch.float64)
        turn = torch.block_diag(*(torch.linalg.solve(eye + s, eye - s, left=False) for s in skew))
        order = layer_class.block_butterfly_perm(None, 32, 8 // 2**number, 2, 2)
        permutation = layer_class.perm2mat(None, order).double()
        product = permutation @ turn @ permutation.T @ product
    scale = stored[f"base_model.model.{name}.boft_s"].double()
    wanted = (product @ tensors(llama)[f"{name}.weight"].double().T).T * scale
    assert far_apart(tensors(tmp_path / "out")[f"{name}.weight"], wanted) < 1e-6


def test_methods_of_several_adapters(tmp_path: Path, llama: Path) -> None:
    """One after the other, the parity check too."""
    save_adapter(tmp_path / "lora", llama, peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    save_adapter(tmp_path / "ia3", llama, CASES["ia3"]())
    merge([tmp_path / "lora", tmp_path / "ia3"], llama, tmp_path / "out", parity="rows", scale=[0.5, 1.0])
    model = peft.PeftModel.from_pretrained(load(llama), tmp_path / "lora")
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.5)
    wanted = peft.PeftModel.from_pretrained(model.merge_and_unload(), tmp_path / "ia3").merge_and_unload().state_dict()
    for name, tensor in tensors(tmp_path / "out").items():
        assert far_apart(tensor, wanted[name]) < 1e-6


@pytest.mark.parametrize("name", ["ia3", "vera", "oft series", "fourierft", "hira"])
def test_the_parity_check_takes_other_methods(tmp_path: Path, llama: Path, name: str) -> None:
    save_adapter(tmp_path / "adapter", llama, CASES[name]())
    report = merge([tmp_path / "adapter"], llama, tmp_path / "out", parity="rows")["parity"]
    assert report["relative_difference"] <= report["limit"]


def test_only_lora_can_be_scaled(tmp_path: Path, llama: Path) -> None:
    save_adapter(tmp_path / "adapter", llama, CASES["ia3"]())
    with pytest.raises(ConfigError, match="only LoRA without DoRA can be scaled, not IA3; leave --scale at 1"):
        merge([tmp_path / "adapter"], llama, tmp_path / "out", scale=[0.5])


def test_projections_that_were_not_saved_are_named(tmp_path: Path, llama: Path) -> None:
    save_adapter(tmp_path / "adapter", llama, peft.VeraConfig(target_modules=["q_proj"], r=4, save_projection=False))
    with pytest.raises(ArtifactError, match=r"has no vera_A: it was saved without .*; load it with PEFT and save it"):
        merge([tmp_path / "adapter"], llama, tmp_path / "out")


@pytest.mark.parametrize("kind", [kind for kind in peft.PeftType.__members__ if kind not in METHODS])
def test_what_cannot_be_merged_is_named_with_the_reason(tmp_path: Path, llama: Path, kind: str) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter" / "adapter_model.safetensors")
    reason = f"{kind} cannot be merged: it .*; serve it as an adapter" if kind in NO_WEIGHTS else "merge_and_unload"
    with pytest.raises(ConfigError, match=reason) as caught:
        merge([tmp_path / "adapter"], llama, tmp_path / "out")
    assert caught.value.code == 2


def test_torchs_random_permutation_is_found_without_torch() -> None:
    from postmill.stages.merge.methods.structured import first_of_permutation

    for count, wanted, seed in [(1000, 50, 777), (4096 * 4096, 1000, 777), (7, 7, 3)]:
        found = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]
        np.testing.assert_array_equal(first_of_permutation(count, wanted, seed), found.numpy())
