"""Merging against PEFT: the same weights as its merge in float32, rounded once; for every method we say we can."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from token_tables import row, to_batches, write_tokens  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.manifest import MANIFEST, load_artifact  # noqa: E402
from postmill.stages.merge.config import STAGE, Merge  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402

ATTENTION = ["q_proj", "v_proj", "o_proj"]
VOCAB = 123


def make_base(
    path: Path, *, tied: bool = False, dtype: str = "bfloat16", shards: bool = False, kind: str = "qwen3"
) -> Path:
    """A model of a few thousand random weights. All norms and biases are random too, so that nothing hides in zeros."""
    torch.manual_seed(1)
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    else:
        config = transformers.Qwen3Config(
            vocab_size=VOCAB, hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=12, tie_word_embeddings=tied, max_position_embeddings=64,
            attention_bias=True, eos_token_id=5, pad_token_id=0, bos_token_id=None,
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(path, max_shard_size="9KB" if shards else "1GB")
    return path


def make_adapter(path: Path, base: Path, seed: int = 2, **options: Any) -> Path:
    """A PEFT adapter on `base` with random factors, saved by PEFT."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = options.pop("vocab", None)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION} | options
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                offset = 1.0 if "magnitude" in name else 0.0
                parameter.copy_(torch.randn_like(parameter) * 0.2 + offset)
    wrapped.save_pretrained(path)
    return path


def merge(adapters: list[Path], base: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Run the stage. Returns the metrics."""
    given = {"parts": [str(a) for a in adapters], "model": [str(base)]}
    config = Merge(**({"parity": "off"} | options))
    return run_stage(STAGE, config, given, out, Options(threads=2)).manifest.metrics


def weights(folder: Path) -> dict[str, Any]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def by_peft(base: Path, adapters: list[Path], scales: list[float] | None = None) -> dict[str, Any]:
    """What PEFT merges in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = next(
        (
            len(t)
            for a in adapters
            for n, t in load_file(a / "adapter_model.safetensors").items()
            if n.endswith("embed_tokens.weight")
        ),
        VOCAB,
    )
    if rows != VOCAB:
        model.resize_token_embeddings(rows, mean_resizing=False)
    for number, adapter in enumerate(adapters):
        wrapped = peft.PeftModel.from_pretrained(model, adapter)
        if scales:
            for module in wrapped.modules():
                if hasattr(module, "set_scale"):
                    module.set_scale("default", scales[number])
        model = wrapped.merge_and_unload()
    return dict(model.state_dict())


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "all linear layers": ({}, {"target_modules": "all-linear"}),
    "rank-stabilised": ({}, {"use_rslora": True, "r": 7}),
    "rank and alpha by pattern": ({}, {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"1.self_attn.v_proj": 9}}),
    "float32 base": ({"dtype": "float32"}, {}),
    "float16 base": ({"dtype": "float16"}, {}),
    "shards": ({"shards": True}, {"target_modules": "all-linear"}),
    "embedding": ({}, {"target_modules": ["embed_tokens", "q_proj"]}),
    "head": ({}, {"target_modules": ["lm_head", "q_proj"]}),
    "modules to save": ({}, {"modules_to_save": ["lm_head", "norm"]}),
    "biases": ({}, {"bias": "all"}),
    "bias of B": ({}, {"lora_bias": True}),
    "Conv1D of GPT-2": ({"kind": "gpt2"}, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "tied, not touched": ({"tied": True}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equal_bits_to_peft_in_float32_rounded(tmp_path: Path, name: str) -> None:
    base_options, adapter_options = CASES[name]
    base = make_base(tmp_path / "base", **base_options)
    adapter = make_adapter(tmp_path / "adapter", base, **adapter_options)
    merge([adapter], base, tmp_path / "out")
    expected, before, found = by_peft(base, [adapter]), weights(base), weights(tmp_path / "out")
    assert found.keys() == before.keys()
    changed = 0
    for tensor, value in found.items():
        assert value.dtype == before[tensor].dtype
        assert torch.equal(value, expected[tensor].to(value.dtype)), tensor
        changed += not torch.equal(value, before[tensor])
    assert changed > 0
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # loads without complaint


@pytest.mark.parametrize(
    ("base_options", "targets"),
    [({}, ATTENTION), ({}, ["embed_tokens", "q_proj"]), ({"kind": "gpt2"}, ["c_attn"])],
    ids=["linear", "embedding", "conv1d"],
)
def test_dora(tmp_path: Path, base_options: dict[str, Any], targets: list[str]) -> None:
    """Norms are summed in float64 here and float32 there, so the last bit of bfloat16 may differ now and then."""
    base = make_base(tmp_path / "base", **base_options)
    fan = bool(base_options)
    adapter = make_adapter(tmp_path / "adapter", base, use_dora=True, target_modules=targets, fan_in_fan_out=fan)
    merge([adapter], base, tmp_path / "out")
    expected, found = by_peft(base, [adapter]), weights(tmp_path / "out")
    for tensor, value in found.items():
        wanted = expected[tensor].to(value.dtype)
        assert (value != wanted).float().mean() < 0.01, tensor
        torch.testing.assert_close(value, wanted, rtol=2**-7, atol=1e-6)


def test_several_adapters_in_sequence_with_scales(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype="float32")
    adapters = [
        make_adapter(tmp_path / "a", base, seed=3),
        make_adapter(tmp_path / "b", base, seed=4, target_modules=["q_proj", "up_proj"], r=2),
    ]
    merge(adapters, base, tmp_path / "out", scale=[1.0, 0.5])
    expected = by_peft(base, adapters, [1.0, 0.5])
    for tensor, value in weights(tmp_path / "out").items():
        assert torch.equal(value, expected[tensor]), tensor
    with pytest.raises(ConfigError, match="--scale: 1 of them for 2 adapters"):
        merge(adapters, base, tmp_path / "other", scale=[1.0])


def test_rounds_once_and_not_after_each_adapter(tmp_path: Path) -> None:
    """Two adapters that cancel give the base back bit for bit, which rounding in between would not.

    The base's numbers and the changes have few digits, so that no float32 sum of them is inexact.
    """
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", base, r=4, lora_alpha=4)
    for file in (base / "model.safetensors", adapter / "adapter_model.safetensors"):
        tensors = load_file(file)
        save_file({name: (tensor.float() * 16).round().to(tensor.dtype) / 16 for name, tensor in tensors.items()}, file)
    merge([adapter, adapter], base, tmp_path / "out", scale=[1024.0, -1024.0])
    once = merge([adapter], base, tmp_path / "once", scale=[1024.0])
    assert once["num_changed"] == 6
    before, after = weights(base), weights(tmp_path / "out")
    assert all(torch.equal(after[name], before[name]) for name in before)


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(torch.arange(20)[None] * 5 % VOCAB).logits.float()


@pytest.mark.parametrize(
    ("options", "untied"),
    [
        ({"target_modules": ["embed_tokens", "q_proj"]}, True),
        ({"target_modules": ["lm_head", "q_proj"]}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
        ({"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 50, 7]}, False),
    ],
    ids=["embedding", "head", "saved embedding", "saved head", "embedding kept tied", "saved kept tied", "tokens"],
)
def test_tied_embeddings_compute_what_the_adapter_computed(
    tmp_path: Path, options: dict[str, Any], untied: bool
) -> None:
    base = make_base(tmp_path / "base", tied=True, dtype="float32")
    adapter = make_adapter(tmp_path / "adapter", base, **options)
    metrics = merge([adapter], base, tmp_path / "out", parity="rows")
    assert metrics["untied"] is untied
    assert ("lm_head.weight" in weights(tmp_path / "out")) is untied
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = logits(peft.PeftModel.from_pretrained(model, adapter).eval())
    found = logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_new_tokens(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype="float32")
    adapter = make_adapter(tmp_path / "adapter", base, vocab=VOCAB + 4, modules_to_save=["embed_tokens", "lm_head"])
    metrics = merge([adapter], base, tmp_path / "out", parity="rows")
    assert (metrics["vocab_before"], metrics["vocab_after"]) == (VOCAB, VOCAB + 4)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == VOCAB + 4
    assert weights(tmp_path / "out")["lm_head.weight"].shape == (VOCAB + 4, 24)


def test_stop_ids_and_the_files_beside_the_weights(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "tokenizer.json").write_text("{}")
    (base / "chat_template.jinja").write_text("base")
    adapter = make_adapter(tmp_path / "adapter", base)
    merge([adapter], base, tmp_path / "plain")
    assert (tmp_path / "plain" / "chat_template.jinja").read_text() == "base"
    assert (tmp_path / "plain" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    (adapter / "training.json").write_text('{"stop_ids": [9, 5, 11]}')
    (adapter / "tokenizer.json").write_text('{"a": 1}')
    (adapter / "chat_template.jinja").write_text("trained")
    metrics = merge([adapter], base, tmp_path / "out")
    assert metrics["stop_ids_added"] == [9, 11]
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [5, 9, 11]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "trained"
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert not list((tmp_path / "out").glob("*.bin"))


def test_the_base_is_found_and_checked(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    stage = Merge(parity="off")
    found = run_stage(STAGE, stage, {"parts": [str(adapter)]}, tmp_path / "found", Options())
    given = run_stage(STAGE, stage, {"parts": [str(adapter)], "model": [str(base)]}, tmp_path / "given", Options())
    assert found.manifest.digest() == given.manifest.digest()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere"}))
    with pytest.raises(ArtifactError, match="pass the base with -m") as caught:
        run_stage(STAGE, stage, {"parts": [str(adapter)]}, tmp_path / "lost", Options())
    assert caught.value.code == 66


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", make_base(tmp_path / "gpt2", kind="gpt2"), target_modules=["c_attn"])
    with pytest.raises(ArtifactError, match=r"c_attn\.weight, which the base does not have") as caught:
        merge([adapter], base, tmp_path / "out")
    assert caught.value.code == 78
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_fits_but_was_trained_on_another_base(tmp_path: Path) -> None:
    """Same shapes, other weights: ours carries its base's digest and is refused; PEFT's carries none to go by."""
    import tiny_model

    pytest.importorskip("postmill._native", reason="native module not built")
    from postmill.stages.train.config import STAGE as TRAIN
    from postmill.stages.train.config import Train

    one = tiny_model.write_model(tmp_path / "one", seed=0)
    other = tiny_model.write_model(tmp_path / "other", seed=1)
    packed = tiny_model.write_packed(tmp_path / "packed", one, tiny_model.make_rows(6))
    given = {"packed": [str(packed)], "model": [str(one)]}
    run_stage(TRAIN, make(Train, steps=1, lr=1e-2), given, tmp_path / "run", Options(threads=1))
    with pytest.raises(ArtifactError, match=r"trained on the model blake3:.*, but .*other is blake3:") as caught:
        merge([tmp_path / "run"], other, tmp_path / "out")
    assert caught.value.code == 78
    assert not (tmp_path / "out").exists()
    merge([tmp_path / "run"], one, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2


def test_factors_of_another_shape(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    save_file(tensors | {name: torch.zeros(4, 25)}, path)
    with pytest.raises(
        ArtifactError, match=r"q_proj.weight has shape \[24, 25\], the weight in .* has \[24, 24\]"
    ) as caught:
        merge([adapter], base, tmp_path / "out")
    assert caught.value.code == 78
    save_file({n: t for n, t in tensors.items() if n != name}, path)
    with pytest.raises(ArtifactError, match=r"q_proj has only lora_B\.weight of its factors"):
        merge([adapter], base, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING cannot be merged"),
        ({"peft_type": "GLORA"}, "peft_type 'GLORA'"),
        ({"peft_type": None}, "peft_type None"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"layer_replication": [[0, 2]]}, "layer replication"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
    ],
)
def test_methods_that_cannot_be_merged_are_named(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=what) as caught:
        merge([adapter], base, tmp_path / "out")
    assert caught.value.code == 2


def test_a_quantized_base_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ConfigError, match="quantized"):
        merge([adapter], base, tmp_path / "out")


def test_a_diverged_adapter_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(StageError, match="not finite") as caught:
        merge([adapter], base, tmp_path / "out")
    assert caught.value.code == 65


def test_a_failed_parity_commits_nothing(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    with pytest.raises(StageError, match="parity: logits differ") as caught:
        merge([adapter], base, tmp_path / "out", parity="rows", tolerance=1e-9)
    assert caught.value.code == 1
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    metrics = merge([adapter], base, tmp_path / "out", parity="rows")
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert report == metrics["parity"]
    assert 0 < report["relative_difference"] <= report["limit"]
    assert report["relative_difference"] == pytest.approx(report["rounding"], rel=0.05)
    assert report["num_tokens"] > 100


def test_parity_finds_what_rounding_does_not_explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that leaves out one factor of one layer, or takes half of it; and digits lost beside a large change."""
    from postmill.stages.merge import run as stage

    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    right = stage.make_plan

    def wrong(*args: Any) -> Any:
        plan = right(*args)
        plan.shards["model.safetensors"]["model.layers.1.self_attn.v_proj.weight"].edits = []
        return plan

    monkeypatch.setattr(stage, "make_plan", wrong)
    with pytest.raises(StageError, match=r"parity: logits differ by .* where rounding explains"):
        merge([adapter], base, tmp_path / "out", parity="rows")


def test_rounding_that_loses_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from postmill.stages.merge import parity

    monkeypatch.setattr(parity, "_TOO_MUCH", 1e-5)
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    with pytest.raises(StageError, match=r"rounding alone changes logits by .* save more digits with --dtype float32"):
        merge([adapter], base, tmp_path / "out", parity="rows")
    merge([adapter], base, tmp_path / "out", parity="rows", dtype="float32")


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float32", "float32"), ("float16", "bfloat16"), ("bfloat16", "float32")]
)
def test_weights_can_be_saved_in_another_dtype(tmp_path: Path, dtype: str, stored: str) -> None:
    base = make_base(tmp_path / "base", dtype=stored)
    adapter = make_adapter(tmp_path / "adapter", base)
    metrics = merge([adapter], base, tmp_path / "out", dtype=dtype, parity="rows")
    assert metrics["parity"]["relative_difference"] <= metrics["parity"]["limit"]
    expected, found = by_peft(base, [adapter]), weights(tmp_path / "out")
    for name, tensor in found.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_parity_on_stored_rows(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    rows = write_tokens(tmp_path / "rows", to_batches([row([1, 2, 3, 4, 5]), row([6, 7]), row([8])]))
    given = {"parts": [str(adapter)], "model": [str(base)], "rows": [str(rows)]}
    metrics = run_stage(STAGE, Merge(), given, tmp_path / "out", Options()).manifest.metrics
    assert (metrics["parity"]["source"], metrics["parity"]["num_tokens"]) == ("rows", 8)


def test_adapters_on_the_embedding_in_sequence(tmp_path: Path) -> None:
    """PEFT saves the embedding itself beside its factors; that is no replacement, and a second adapter may follow."""
    base = make_base(tmp_path / "base", dtype="float32")
    adapters = [make_adapter(tmp_path / n, base, seed=i, target_modules=["embed_tokens"]) for i, n in enumerate("ab")]
    merge(adapters, base, tmp_path / "out")
    expected = weights(base)["model.embed_tokens.weight"].clone()
    for adapter in adapters:  # loaded one after the other, PEFT would put the saved base back over the first
        file = load_file(adapter / "adapter_model.safetensors")
        a, b = (next(t for n, t in file.items() if n.endswith(f"lora_embedding_{x}")) for x in "AB")
        expected += (b @ a).T * (6 / 4)
    assert torch.equal(weights(tmp_path / "out")["model.embed_tokens.weight"], expected)


def test_threads_and_shards_change_no_byte_of_any_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from postmill.stages.merge import arithmetic

    one, many = make_base(tmp_path / "one"), make_base(tmp_path / "many", shards=True)
    adapter = make_adapter(tmp_path / "adapter", one, target_modules="all-linear")
    merge([adapter], one, tmp_path / "a")
    merge([adapter], many, tmp_path / "b")
    monkeypatch.setattr(arithmetic, "BLOCK_ELEMENTS", 30)
    run_stage(
        STAGE,
        Merge(parity="off"),
        {"parts": [str(adapter)], "model": [str(one)]},
        tmp_path / "c",
        Options(threads=7),
    )
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert a.keys() == b.keys() == c.keys()
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)


def test_bfloat16_rounds_half_to_even() -> None:
    from postmill.stages.merge.arithmetic import from_float32, to_float32

    bits = np.arange(0, 2**32, 65537 * 3, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)].copy()
    halves = (np.arange(0x3F80, 0x4080, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    for array in (values, halves):
        expected = torch.from_numpy(array).to(torch.bfloat16)
        raw = from_float32(array.copy(), "BF16")
        assert bytes(raw) == expected.view(torch.int16).numpy().tobytes()
        np.testing.assert_array_equal(to_float32(raw, "BF16"), expected.float().numpy())


def _command(adapter: Path, base: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "postmill.cli.main",
        "merge",
        str(adapter),
        "-m",
        str(base),
        "-o",
        str(out),
        "--parity",
        "off",
    ]


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    code = (
        "import sys; sys.argv[0] = 'postmill'\nfrom postmill.cli import main\ntry: main.main()\nfinally:\n"
        " print({'torch', 'transformers', 'peft'} & set(sys.modules), file=sys.stderr)"
    )
    argv = _command(adapter, base, tmp_path / "out")
    done = subprocess.run([sys.executable, "-c", code, *argv[3:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert done.stderr.strip().endswith("set()")


def test_killed_at_any_moment_leaves_nothing_or_all(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", shards=True)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules="all-linear")
    out, dice = tmp_path / "out", random.Random(0)
    started = time.monotonic()
    subprocess.run(_command(adapter, base, tmp_path / "whole"), check=True, capture_output=True)
    usual = time.monotonic() - started
    whole = (tmp_path / "whole" / MANIFEST).read_bytes()
    for _ in range(6):
        child = subprocess.Popen(_command(adapter, base, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.3, 1.0) * usual)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if out.exists():
            assert load_artifact(out).manifest.kind == "model"
    subprocess.run(_command(adapter, base, out), check=True, capture_output=True)
    assert (out / MANIFEST).read_bytes() == whole
    # an empty lock may stay if the kill fell between the last rename and its removal
    assert not [path for path in tmp_path.iterdir() if ".tmp-" in path.name]
