"""Merges that once went wrong, or ended in a message that led nowhere: each is named after the report of its kind."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from adapters import LLAMA, SMALL, far_apart, load, logits, merge, save_adapter, save_base, tensors  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from postmill.io.errors import ArtifactError  # noqa: E402

GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 96,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MOE = LLAMA | {"num_experts_per_tok": 2, "max_position_embeddings": 64}
DEEPSEEK = MOE | {
    "n_routed_experts": 4, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_shared_experts": 1, "num_key_value_heads": 4,
}  # fmt: skip


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]} | options))


def qwen3_moe(**options: Any) -> Any:
    return transformers.Qwen3MoeConfig(
        **(MOE | {"num_experts": 3, "moe_intermediate_size": 24, "decoder_sparse_step": 1} | options)
    )


@pytest.mark.parametrize("targets", [["c_attn", "lm_head"], ["c_proj", "lm_head"], ["c_proj", "wte"]])
@pytest.mark.parametrize("flag", [False, True])
def test_f7_each_module_decides_whether_it_is_transposed(tmp_path: Path, targets: list[str], flag: bool) -> None:
    """GPT-2's Conv1D (square, oblong) and its linear head in one adapter, whatever `fan_in_fan_out` says for all."""
    base = save_base(tmp_path / "base", transformers.GPT2Config(**GPT2))
    wanted = save_adapter(tmp_path / "adapter", base, lora(target_modules=targets, fan_in_fan_out=flag))
    metrics = merge([tmp_path / "adapter"], base, tmp_path / "out", parity="rows")
    assert far_apart(logits(load(tmp_path / "out")), wanted) < 1e-5
    assert metrics["untied"]


def test_f8_trained_tokens_beside_a_saved_head(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", transformers.LlamaConfig(tie_word_embeddings=False, **LLAMA))
    config = lora(trainable_token_indices=[3, 4], modules_to_save=["lm_head"])
    wanted = save_adapter(tmp_path / "adapter", base, config)
    merge([tmp_path / "adapter"], base, tmp_path / "out", parity="rows")
    assert far_apart(logits(load(tmp_path / "out")), wanted) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        {"rows": 104, "trainable_token_indices": [96, 97]},
        {"trainable_token_indices": [3, 4], "save_embedding_layers": True},
        {"trainable_token_indices": {"embed_tokens": [3, 4], "lm_head": [3, 4]}},
        {"trainable_token_indices": {"embed_tokens": [3, 4], "lm_head": [5]}},
    ],
    ids=["resized", "saved", "both", "each its own"],
)
def test_f8_trained_tokens_beside_a_saved_or_resized_embedding(
    tmp_path: Path, case: dict[str, Any], tied: bool
) -> None:
    case = dict(case)
    rows, saved = case.pop("rows", 0), {k: case.pop(k) for k in list(case) if k == "save_embedding_layers"}
    base = save_base(tmp_path / "base", transformers.LlamaConfig(tie_word_embeddings=tied, **LLAMA))
    save_adapter(tmp_path / "adapter", base, lora(**case), rows, **saved)
    model = load(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    wanted = logits(peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval())
    metrics = merge([tmp_path / "adapter"], base, tmp_path / "out")
    assert far_apart(logits(load(tmp_path / "out")), wanted) < 1e-5
    assert metrics["vocab_after"] == (rows or 96)


def test_f9_a_tied_embedding_by_the_name_its_family_has(tmp_path: Path) -> None:
    config = transformers.MambaConfig(state_size=4, **SMALL)
    base = save_base(tmp_path / "base", config)
    assert "lm_head.weight" not in tensors(base)
    wanted = save_adapter(tmp_path / "adapter", base, lora(target_modules=["in_proj"], modules_to_save=["embeddings"]))
    assert merge([tmp_path / "adapter"], base, tmp_path / "out")["untied"]
    assert far_apart(logits(load(tmp_path / "out")), wanted) < 1e-5


def test_f9_every_tied_embedding_that_transformers_names_is_known() -> None:
    """The table is transformers' own word: what its generating models declare in `_tied_weights_keys`."""
    import re

    from postmill.stages.merge.base import TIED

    unknown = set()
    folder = Path(transformers.__file__).parent / "models"
    for file in folder.glob("*/modeling_*.py"):
        for head, embedding in re.findall(
            r'_tied_weights_keys = \{"((?:lm_)?head\.weight)": "([\w.]+)"', file.read_text(encoding="utf-8")
        ):
            if "shared" in embedding or "decoder" in embedding or "funnel" in embedding:  # of an encoder and a decoder
                continue
            if not any(embedding.endswith(end) and TIED[end] == head for end in TIED):
                unknown.add((file.parent.name, embedding))
    assert not unknown


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (transformers.DeepseekV3Config(**DEEPSEEK), {"target_modules": "all-linear"}),
        (transformers.MixtralConfig(num_local_experts=3, **MOE), {"target_modules": ["q_proj", "w1", "w2", "w3"]}),
        (qwen3_moe(), {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
        (qwen3_moe(moe_intermediate_size=16), {"target_parameters": ["gate_up_proj", "down_proj"], "use_rslora": True}),
        (
            transformers.GptOssConfig(num_local_experts=3, layer_types=["full_attention"] * 2, **MOE),
            {"target_parameters": ["gate_up_proj", "down_proj"], "rank_pattern": {"experts.down_proj": 3}},
        ),
    ],
    ids=["deepseek v3", "mixtral", "one parameter", "square halves", "gpt-oss, square and transposed"],
)
def test_71_target_parameters(tmp_path: Path, config: Any, options: dict[str, Any]) -> None:
    """LoRA on the stacks that transformers 5 holds experts in, onto files with a tensor for each expert, or a stack."""
    if config.model_type == "gpt_oss":
        config.intermediate_size = 32
    base = save_base(tmp_path / "base", config)
    wanted = save_adapter(tmp_path / "adapter", base, lora(**options))
    merge([tmp_path / "adapter"], base, tmp_path / "out", parity="rows")
    assert far_apart(logits(load(tmp_path / "out")), wanted) < 1e-5


def v4_adapter(path: Path, modules: dict[str, tuple[int, int]], *, rslora: bool = False) -> dict[str, Any]:
    """An adapter with factors for single experts, as transformers 4 made them. Returns the change of each module."""
    torch.manual_seed(3)
    path.mkdir()
    factors, changes = {}, {}
    for name, (rows, columns) in modules.items():
        a, b = torch.randn(4, columns) * 0.2, torch.randn(rows, 4) * 0.2
        factors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        changes[name] = b @ a * (6 / (2 if rslora else 4))
    save_file(factors, path / "adapter_model.safetensors")
    leaves = sorted({name.rpartition(".")[2] for name in modules})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": leaves}
    (path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": rslora}))
    return changes


@pytest.mark.parametrize("rslora", [False, True])
def test_72_factors_for_single_experts_pass_the_parity_check(tmp_path: Path, rslora: bool) -> None:
    """PEFT cannot load them into stacked experts; merged they must be, and checked."""
    base = save_base(tmp_path / "base", qwen3_moe())
    layer = "model.layers.1"
    modules = {
        f"{layer}.mlp.experts.1.down_proj": (32, 24),
        f"{layer}.mlp.experts.2.gate_proj": (24, 32),
        f"{layer}.self_attn.q_proj": (32, 32),
    }
    changes = v4_adapter(tmp_path / "adapter", modules, rslora=rslora)
    metrics = merge([tmp_path / "adapter"], base, tmp_path / "out", parity="rows")
    before, after = tensors(base), tensors(tmp_path / "out")
    for name, change in changes.items():
        torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + change, rtol=0, atol=1e-6)
    assert metrics["num_changed"] == 3


@pytest.mark.parametrize("transposed", [False, True])
def test_72_factors_for_single_experts_onto_a_file_of_stacks(tmp_path: Path, transposed: bool) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "llama4_text" if transposed else "qwen3_moe"}))
    stacks = {"gate_up_proj": (3, 48, 32), "down_proj": (3, 32, 24)}
    experts = "model.layers.0.mlp.experts"
    stored = {f"{experts}.{n}": torch.randn(shape) for n, shape in stacks.items()}
    flip = (lambda t: t.transpose(1, 2).contiguous()) if transposed else (lambda t: t)
    save_file({n: flip(t) for n, t in stored.items()}, base / "model.safetensors")
    sizes = {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)}
    modules = {f"{experts}.{e}.{leaf}": sizes[leaf] for e, leaf in [(0, "up_proj"), (2, "gate_proj"), (1, "down_proj")]}
    changes = v4_adapter(tmp_path / "adapter", modules)
    merge([tmp_path / "adapter"], base, tmp_path / "out")
    stored[f"{experts}.gate_up_proj"][0, 24:] += changes[f"{experts}.0.up_proj"]
    stored[f"{experts}.gate_up_proj"][2, :24] += changes[f"{experts}.2.gate_proj"]
    stored[f"{experts}.down_proj"][1] += changes[f"{experts}.1.down_proj"]
    for name, tensor in tensors(tmp_path / "out").items():
        torch.testing.assert_close(tensor, flip(stored[name]), rtol=0, atol=1e-6)


def llama_with_adapter(tmp_path: Path) -> tuple[Path, Path]:
    base = save_base(tmp_path / "base", transformers.LlamaConfig(tie_word_embeddings=False, **LLAMA))
    save_adapter(tmp_path / "adapter", base, lora(modules_to_save=["norm"]))
    return base, tmp_path / "adapter"


def rename(adapter: Path, change: Any) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file)


def test_74_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    base, adapter = llama_with_adapter(tmp_path)
    tokens = {"model": {"vocab": {f"w{n}": n for n in range(96)}}, "added_tokens": [{"id": 96, "content": "<new>"}]}
    (adapter / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ArtifactError, match=r"has id 96 \(<new>\), but the embedding has 96 rows") as caught:
        merge([adapter], base, tmp_path / "out")
    assert caught.value.code == 78
    assert not (tmp_path / "out").exists()
    tokens["added_tokens"] = [{"id": 95, "content": "<new>"}]
    (adapter / "tokenizer.json").write_text(json.dumps(tokens))
    merge([adapter], base, tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n.replace("_A.weight", "_A.default.weight").replace("_B.weight", "_B.default.weight"),
        lambda n: n.replace("norm.weight", "norm.modules_to_save.default.weight").replace(
            "A.weight", "A.default.weight"
        ),
        lambda n: n.replace("base_model.model.model.", "base_model.model._orig_mod.model."),
        lambda n: n.replace(".self_attn.", "._fsdp_wrapped_module.self_attn._checkpoint_wrapped_module."),
        lambda n: n.replace("base_model.model.model.", "base_model.model.model.language_model."),
        lambda n: n.replace("base_model.model.", "base_model.model.base_model.model."),
        lambda n: n.replace("base_model.model.", "module.base_model.model."),
        lambda n: n.replace("base_model.model.model.", ""),
    ],
    ids=["76 raw", "76 raw and saved", "77 compiled", "77 fsdp", "77 in another", "77 doubled", "77 ddp", "77 bare"],
)
def test_76_77_names_of_other_writers_mean_the_same(tmp_path: Path, change: Any) -> None:
    base, adapter = llama_with_adapter(tmp_path)
    merge([adapter], base, tmp_path / "as-peft-names-them")
    rename(adapter, change)
    merge([adapter], base, tmp_path / "out")
    wanted = tensors(tmp_path / "as-peft-names-them")
    found = tensors(tmp_path / "out")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_76_two_adapters_in_one_file_are_named(tmp_path: Path) -> None:
    base, adapter = llama_with_adapter(tmp_path)
    rename(adapter, lambda n: n.replace("_A.weight", f"_A.{'one' if '.0.' in n else 'two'}.weight"))
    with pytest.raises(ArtifactError, match="holds the adapters one, two; save the one to merge"):
        merge([adapter], base, tmp_path / "out")


def test_77_a_name_of_no_tensor_is_told_with_the_nearest(tmp_path: Path) -> None:
    base, adapter = llama_with_adapter(tmp_path)
    rename(adapter, lambda n: n.replace(".layers.1.", ".layers.7."))
    with pytest.raises(
        ArtifactError,
        match=r"layers\.7\.(\S+), which the base does not have \(nearest: model\.layers\.1\.\1\);"
        r" pass the base it was trained on, which it says is .*base with -m, or rename",
    ):
        merge([adapter], base, tmp_path / "out")


def test_79_an_untrained_adapter_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(tmp_path / "base", transformers.LlamaConfig(**LLAMA))
    save_adapter(tmp_path / "adapter", base, lora(), trained=lambda name: "lora_B" not in name)
    assert merge([tmp_path / "adapter"], base, tmp_path / "out")["num_changed"] == 0
    assert "warning: no weight changed: the adapters are untrained" in capsys.readouterr().err
    save_adapter(tmp_path / "trained", base, lora())
    assert merge([tmp_path / "trained"], base, tmp_path / "more")["num_changed"] == 2
    assert "no weight changed" not in capsys.readouterr().err


def test_83_warnings_of_peft_are_a_line_each_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    from postmill.stages.progress import Progress

    base = save_base(tmp_path / "base", transformers.GPT2Config(**GPT2))
    save_adapter(tmp_path / "adapter", base, lora(target_modules=["c_attn", "c_proj"]))
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": False}))
    for quiet in (True, False):
        capsys.readouterr()
        with warnings.catch_warnings(), Progress.install(quiet=quiet):
            warnings.simplefilter("error")
            merge([tmp_path / "adapter"], base, tmp_path / f"out-{quiet}", parity="rows")
        said = [line for line in capsys.readouterr().err.splitlines() if "peft" in line or "Warning" in line]
        assert len(said) == (0 if quiet else 1), said
