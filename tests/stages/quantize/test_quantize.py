"""Quantized folders: read back by compressed-tensors and by us as the same numbers; bad ones never committed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import tiny_tokenizer
import token_tables

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.model_folder import tokenizer_digest  # noqa: E402
from postmill.io.safetensors_file import open_weights  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.protocol import Stop  # noqa: E402
from postmill.stages.quantize import calibrate  # noqa: E402
from postmill.stages.quantize.config import STAGE, Quantize  # noqa: E402
from postmill.stages.quantize.experts import by_class  # noqa: E402
from postmill.stages.quantize.fold import Inputs, fold  # noqa: E402
from postmill.stages.quantize.gate import compare, judge, limits_of  # noqa: E402
from postmill.stages.quantize.layers import StreamedModel  # noqa: E402
from postmill.stages.quantize.plan import Plan, make_plan  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.shared.quantized_weights import read_float32  # noqa: E402

LOOSE = {"max_ppl_increase": 1e9, "min_agreement": 0.0, "max_kl": 1e9}
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 300}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model.write_model(tmp_path_factory.mktemp("given") / "base", dtype="bfloat16", **SHAPE)
    (folder / "chat_template.jinja").unlink()
    return tiny_tokenizer.write_tokenizer(folder)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    path = tmp_path_factory.mktemp("rows") / "tokens"
    rows = token_tables.to_batches(tiny_model.make_rows(30))
    return token_tables.write_tokens(path, rows, {"tokenizer": tokenizer_digest(base)})


def quantize(
    base: Path, out: Path, rows: Path | None = None, threads: int = 2, seen: Path | None = None, **options: Any
) -> dict[str, Any]:
    """Run the stage: `rows` for the gate, `seen` for calibration. Returns the metrics."""
    given = (
        {"model": [str(base)]} | ({"held_out": [str(rows)]} if rows else {}) | ({"rows": [str(seen)]} if seen else {})
    )
    config = make(Quantize, **({"group_size": 32} | LOOSE | options))
    return run_stage(STAGE, config, given, out, Options(threads=threads)).manifest.metrics


def logits_of(folder: Path, dtype: Any = torch.float32) -> "torch.Tensor":
    """Of a fixed row, by the numbers that we read from the folder, in a plain model of transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with open_weights(folder) as weights:
        values = {
            n: read_float32(weights, n) for n in model.state_dict() if n != "lm_head.weight" or n in weights.where
        }
    model.load_state_dict({name: value.to(dtype).float() for name, value in values.items()}, strict=False)
    model.tie_weights()
    with torch.inference_mode():
        return model(torch.tensor([[3, 9, 27, 14, 2, 41]])).logits[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"symmetric": False},
        {"symmetric": False, "method": "hqq"},
        {"scheme": "w8a16", "group_size": -1, "clip": "mse"},
        {"scheme": "w2a16", "symmetric": False, "group_size": -1},
        {"rule": [r"down_proj=w8a16", r"layers\.0\..*q_proj=keep"]},
        {"scheme": "nvfp4a16"},
        {"scheme": "mxfp4a16"},
    ],
    ids=str,
)
def test_transformers_reads_the_numbers_we_do(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    metrics = quantize(base, tmp_path / "q", **options)
    assert metrics["bytes_after"] < metrics["bytes_before"]
    # compressed-tensors 0.20.1 loads packed zero points only to widen them at once, and computes with FP4 in bfloat16
    widen = not options.get("symmetric", True) or "fp4" in options.get("scheme", "")
    how = {} if not widen else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32, **how).eval()
    with torch.inference_mode():
        found = theirs(torch.tensor([[3, 9, 27, 14, 2, 41]])).logits[0]
    # widening at once rounds each weight to the dtype of its scale
    ours = logits_of(tmp_path / "q", torch.bfloat16 if how else torch.float32)
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, logits_of(base), atol=1e-3)  # something was quantized


def _as_gptq_says(folder: Path, module: str, bits: int, zero_more: int) -> "torch.Tensor":
    """AutoGPTQ's own formula (`QuantLinear.forward` of its torch kernel): scales * (codes - (zeros + 1)), by g_idx."""
    t = load_file(folder / "model.safetensors")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    zeros = (t[f"{module}.qzeros"].unsqueeze(2) >> shifts) & (2**bits - 1)
    zeros = zeros.reshape(t[f"{module}.scales"].shape) + zero_more
    codes = (t[f"{module}.qweight"].unsqueeze(1) >> shifts.view(1, -1, 1)) & (2**bits - 1)
    codes = codes.reshape(-1, zeros.shape[1])
    group = t[f"{module}.g_idx"].long()
    return ((codes - zeros[group]) * t[f"{module}.scales"].float()[group]).T


def _as_awq_says(folder: Path, module: str, group: int) -> "torch.Tensor":
    """AutoAWQ's own formula (`unpack_awq`, `reverse_awq_order`, `dequantize_gemm` of its packing utilities)."""
    t = load_file(folder / "model.safetensors")
    shifts = torch.arange(0, 32, 4)
    back = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])

    def unpack(words: "torch.Tensor") -> "torch.Tensor":
        return ((words[:, :, None] >> shifts) & 15)[:, :, back].reshape(len(words), -1)

    codes, zeros = unpack(t[f"{module}.qweight"]), unpack(t[f"{module}.qzeros"])
    scales = t[f"{module}.scales"].float().repeat_interleave(group, 0)
    return ((codes - zeros.repeat_interleave(group, 0)) * scales).T


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("gptq", {}),
        ("gptq", {"symmetric": False, "rule": [r"layers\.0\.mlp\.down_proj=keep"]}),
        ("gptq", {"scheme": "w8a16", "group_size": -1}),
        ("awq", {}),
        ("awq", {"symmetric": False}),
    ],
    ids=str,
)
def test_other_layouts_hold_the_numbers_of_their_own_formulas(
    layout: str, options: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    """And nearly those of compressed-tensors, whose scales have fewer digits; the gate reads them as we do."""
    report = quantize(base, tmp_path / "q", layout=layout, **options)["parity"]
    said = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == layout
    module = "model.layers.1.mlp.up_proj"
    if layout == "gptq":
        first = said["checkpoint_format"] == "gptq"
        assert (said["sym"], first) == (options.get("symmetric", True),) * 2
        found = _as_gptq_says(tmp_path / "q", module, said["bits"], int(first))
        assert len(said["dynamic"]) == ("rule" in options)
    else:
        found = _as_awq_says(tmp_path / "q", module, 32)
        assert said["modules_to_not_convert"] == ["lm_head"]
    with open_weights(tmp_path / "q") as weights:
        assert torch.equal(read_float32(weights, f"{module}.weight"), found)
    other = quantize(base, tmp_path / "other", **options)["parity"]
    assert report["kl_mean"] == pytest.approx(other["kl_mean"], rel=0.2)


@pytest.mark.parametrize("scheme", ["w8a8", "fp8", "fp8_block"])
def test_rounded_activations_are_those_of_compressed_tensors(scheme: str, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    if scheme == "fp8_block":  # keys have 64 rows, half a block
        shape = SHAPE | {"hidden_size": 128, "intermediate_size": 384}
        base = tiny_model.write_model(tmp_path / "b", dtype="bfloat16", **shape)
        (base / "chat_template.jinja").unlink()
        tiny_tokenizer.write_tokenizer(base)
    quantize(base, tmp_path / "q", scheme=scheme)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32).eval()
    ids = [3, 9, 27, 14, 2, 41]
    with torch.inference_mode():
        found = theirs(torch.tensor([ids])).logits[0]
    near = float((found - logits_of(tmp_path / "q")).abs().mean())
    far = float((found - logits_of(base)).abs().mean())
    assert 0 < near <= far * 3  # activations differ from the weights-only model, by no more than 8 bits explain
    assert far < 0.3 * float(found.std())


def test_one_thread_and_four_write_the_same_bytes(base: Path, held_out: Path, tmp_path: Path) -> None:
    for threads in (1, 4):
        quantize(base, tmp_path / str(threads), held_out, threads)
    one, four = (
        {p.name: p.read_bytes() for p in (tmp_path / str(n)).iterdir() if p.name != "run.json"} for n in (1, 4)
    )
    assert one == four


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def test_gptq_is_nearer_than_rounding_and_its_gate_sees_other_rows(base: Path, held_out: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"scheme": "w4a16", "symmetric": False, "group_size": 32}
    rounded = quantize(base, tmp_path / "rtn", held_out, **how)["parity"]
    found = quantize(base, tmp_path / "gptq", held_out, seen=held_out, method="gptq", calibration_tokens=400, **how)
    assert found["calibration"]["rows"] > 3
    assert 390 < found["calibration"]["tokens"] <= 400
    assert found["parity"]["source"] == "rows"
    whole = quantize(base, tmp_path / "same", held_out, method="rtn", parity_tokens=10**6, **how)["parity"]
    assert 0 < found["parity"]["num_tokens"] <= whole["num_tokens"] - found["calibration"]["tokens"]
    assert found["parity"]["kl_mean"] < 0.8 * rounded["kl_mean"]
    # without --gate, the rows that calibration left are compared
    same = quantize(base, tmp_path / "own", seen=held_out, method="gptq", calibration_tokens=400, **how)
    assert same["parity"] == found["parity"]
    for order in ("static", "none"):
        w8 = quantize(base, tmp_path / order, seen=held_out, method="gptq", scheme="w8a8", order=order)["parity"]
        assert w8["source"] == "prompts"  # calibration has taken all rows
        assert w8["kl_mean"] < rounded["kl_mean"]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_stopped_at_any_layer_ends_with_the_same_bytes(method: str, base: Path, held_out: Path, tmp_path: Path) -> None:
    """For one thread and four; stopped after the first layer, and killed while the second is being written."""
    how: dict[str, Any] = {"seen": held_out, "method": method, "calibration_tokens": 300, "parity": "off"}
    for threads in (1, 4):
        quantize(base, tmp_path / str(threads), None, threads, **how)
    assert contents(tmp_path / "1") == contents(tmp_path / "4")
    asked = iter([False, True])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StageError, match="1 of 2 layers are done"):
        patch.setattr(Stop, "requested", property(lambda _: next(asked)))
        patch.setattr(Stop, "signal", 15, raising=False)
        patch.setattr(Stop, "stopped", lambda _, saved: StageError(saved, 75))
        quantize(base, tmp_path / "stopped", **how)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(calibrate, "save_file", _killed)
        quantize(base, tmp_path / "stopped", **how)
    assert (tmp_path / "stopped.checkpoints").is_dir()
    quantize(base, tmp_path / "stopped", **how)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "1")
    assert not (tmp_path / "stopped.checkpoints").exists()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """The base with a few channels that are thirty times as large as others, as real models have."""
    folder = tmp_path_factory.mktemp("given") / "uneven"
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    read_by = {"input_layernorm": ("q_proj", "k_proj", "v_proj"), "post_attention_layernorm": ("gate_proj", "up_proj")}
    for name in list(tensors):
        norm = name.split(".")[-2]
        if norm in read_by:
            tensors[name][5::17] *= 30
            layer = name.removesuffix(f"{norm}.weight")
            for reader in [n for n in tensors if n.startswith(layer) and n.split(".")[-2] in read_by[norm]]:
                tensors[reader][:, 5::17] /= 8
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(("method", "scheme"), [("awq", "w4a16"), ("smoothquant", "w8a8")])
def test_scaled_inputs_are_nearer_than_rounding(
    method: str, scheme: str, uneven: Path, held_out: Path, tmp_path: Path
) -> None:
    """The gate reads norms and weights back: it compares the whole folded model with its source."""
    rounded = quantize(uneven, tmp_path / "rtn", held_out, scheme=scheme)["parity"]
    how: dict[str, Any] = {"seen": held_out, "method": method, "calibration_tokens": 250}
    found = quantize(uneven, tmp_path / "found", held_out, scheme=scheme, **how)
    assert found["num_scaled"] == 4  # two norms of two layers
    assert found["parity"]["kl_mean"] < 0.8 * rounded["kl_mean"]
    assert found["bytes_after"] == quantize(uneven, tmp_path / "again", scheme=scheme, parity="off")["bytes_after"]


def test_scales_leave_an_unrounded_layer_as_it_was(uneven: Path) -> None:
    """And a norm that something else reads too keeps its weights."""
    model = StreamedModel(uneven)
    generator = torch.manual_seed(0)
    with open_weights(uneven) as weights:
        model.load_ends(lambda name: read_float32(weights, name))
        row, hidden = model.start([3, 9, 27, 14, 2, 41])
        layer = model.load_layer(0, lambda name: read_float32(weights, name))
    before = model.through(0, row, hidden)
    attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    found = [
        Inputs(attention, torch.eye(64), torch.ones(64), "input_layernorm"),
        Inputs(["mlp.gate_proj"], torch.eye(64), torch.ones(64), "post_attention_layernorm"),
        Inputs(["mlp.down_proj"], torch.eye(96), torch.ones(96), ""),
    ]
    old = {name: value.clone() for name, value in layer.state_dict().items()}
    after, replaced = fold(
        layer,
        found,
        lambda _names, _weights, inputs: torch.rand(len(inputs.largest), generator=generator) * 4 + 0.1,
        foldable=lambda _: True,
        answer=lambda: model.through(0, row, hidden),
        stored=lambda _, values: values.bfloat16().float(),
    )
    torch.testing.assert_close(model.through(0, row, hidden), before, rtol=1e-4, atol=1e-4)
    assert set(replaced) == {"input_layernorm.weight"}
    moved = {name for name, value in layer.state_dict().items() if not torch.equal(value, old[name])}
    assert moved == {
        "input_layernorm.weight",
        *(f"{name}.weight" for name in attention),
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    }
    scale = layer.mlp.down_proj.weight / old["mlp.down_proj.weight"]
    torch.testing.assert_close(after[2].largest, 1 / scale[0])
    torch.testing.assert_close(after[2].moment.diagonal(), scale[0] ** -2)


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


def test_rows_that_nothing_looks_at_are_refused(base: Path, held_out: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--rows: --method rtn looks at no data; leave it out, or pass --method gptq"):
        quantize(base, tmp_path / "q", seen=held_out)


def test_shards_stay_shards(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(sharded, max_shard_size="30KB")
    quantize(sharded, tmp_path / "a", parity="off")
    quantize(base, tmp_path / "b", parity="off")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    assert torch.equal(logits_of(tmp_path / "a"), logits_of(tmp_path / "b"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"group_size": 128}, "64 columns are no multiple of --group-size 128, in 14 layers; pass --group-size 32"),
        ({"rule": ["nothing=w8a16"]}, "--rule nothing=w8a16: matches none of 15 linear layers"),
        ({"rule": ["q_proj=w5a16"]}, "--rule q_proj=w5a16: expected REGEX=SCHEME"),
        ({"rule": ["(=keep"]}, "--rule (=keep: "),
        ({"rule": ["lm_head=w8a16"]}, "lm_head: shares its weight with the embedding"),
        ({"rule": ["layers=keep"]}, "no linear layer is left"),
        ({"method": "hqq"}, "--no-symmetric"),
        ({"method": "gptq"}, "--method gptq needs --rows"),
        ({"layout": "awq", "scheme": "w8a16"}, "--layout awq: holds one of w4a16 for all layers, not w8a16"),
        ({"layout": "gptq", "rule": ["q_proj=fp8"]}, "--layout gptq: holds one of w2a16, w4a16, w8a16"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_a_line(options: dict[str, Any], says: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        quantize(base, tmp_path / "q", **options)
    assert says in str(caught.value)
    assert not (tmp_path / "q").exists()


def test_a_quantized_model_is_not_quantized_again(base: Path, tmp_path: Path) -> None:
    quantize(base, tmp_path / "q", parity="off")
    with pytest.raises(ConfigError, match="quantized already"):
        quantize(tmp_path / "q", tmp_path / "again")


def test_rows_of_another_tokenizer_are_refused(base: Path, tmp_path: Path) -> None:
    rows = token_tables.write_tokens(tmp_path / "t", token_tables.to_batches(tiny_model.make_rows(3)))
    with pytest.raises(ArtifactError) as caught:
        quantize(base, tmp_path / "q", rows)
    assert caught.value.code == 78


def test_the_gate_commits_nothing_over_a_limit(base: Path, held_out: Path, tmp_path: Path) -> None:
    report = quantize(base, tmp_path / "fine", held_out, scheme="w8a16", max_kl=0.05)["parity"]
    assert 0 < report["kl_mean"] < 0.05
    assert report["num_tokens"] > 200
    for limit in ({"max_kl": report["kl_mean"] / 2}, {"min_agreement": 1.0}):
        with pytest.raises(StageError) as caught:
            quantize(base, tmp_path / "bad", held_out, scheme="w2a16", **limit)
        assert caught.value.code == 1
        assert f"--{next(iter(limit)).replace('_', '-')}" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fine"]


def test_small_models_may_lose_more_where_activations_are_rounded() -> None:
    gate = Quantize().gate

    def limits(size: int, *, rounds: bool) -> tuple[float | None, float, float]:
        return limits_of(gate, 8, size, judge_ppl=True, num_tokens=10**9, rounds_activations=rounds)

    assert limits(10**8, rounds=True) == (0.05, 0.85, 0.06)
    assert limits(10**8, rounds=False) == limits(10**10, rounds=True) == (0.01, 0.97, 0.02)


def _plan(base: Path, config: Quantize) -> tuple[StreamedModel, Plan]:
    model = StreamedModel(base)
    inside = {name for name in model.linears if name.startswith(model.prefix)}
    with open_weights(base) as weights:
        return model, make_plan(config, weights, model.linears, inside, model.tied)


def _swap_qk(tensors: dict[str, Any]) -> None:
    q, k = "model.layers.0.self_attn.q_proj.", "model.layers.0.self_attn.o_proj."
    for part in ("weight_packed", "weight_scale"):
        tensors[q + part], tensors[k + part] = tensors[k + part], tensors[q + part]


def _scramble_scales(tensors: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.down_proj.weight_scale"
    tensors[name] = tensors[name].flip(0).contiguous() * 4


def _other_nibbles(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.endswith("weight_packed")]:
        raw = tensors[name].view(torch.uint8)
        tensors[name] = ((raw << 4) | (raw >> 4)).view(torch.int32)


def _transpose(tensors: dict[str, Any]) -> None:
    from postmill.kernels.quantize.packing import pack_rows, unpack_rows

    name = "model.layers.1.self_attn.o_proj.weight_packed"
    tensors[name] = pack_rows(unpack_rows(tensors[name], 8, 64).T.contiguous(), 8)


@pytest.mark.parametrize("damage", [_swap_qk, _scramble_scales, _other_nibbles, _transpose])
def test_sabotage_fails_the_gate(damage: Any, base: Path, tmp_path: Path) -> None:
    """What bugs in a writer do to files, and the limits that people have without asking: 8 bits are near the source."""
    config = make(Quantize, group_size=32, scheme="w8a16", parity="off")
    run_stage(STAGE, config, {"model": [str(base)]}, tmp_path / "q", Options())
    model, plan = _plan(base, config)
    rows = [row["input_ids"] for row in tiny_model.make_rows(20)]

    def report() -> dict[str, Any]:
        with open_weights(base) as source, open_weights(tmp_path / "q") as result:
            return compare(
                model,
                model,
                read_source=lambda name: read_float32(source, name),
                read_result=lambda name: read_float32(result, name),
                plan=plan,
                rows=rows,
                threads=1,
            )

    limits = limits_of(
        config.gate, plan.fewest_bits, model.num_parameters, judge_ppl=True, num_tokens=sum(map(len, rows))
    )
    judge(report(), limits)
    file = tmp_path / "q" / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(StageError, match="nothing was committed"):
        judge(report(), limits)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_quantized_one_by_one_and_routers_are_not(kind: str, held_out: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {"num_local_experts": 3} if kind == "mixtral" else {"num_experts": 3, "moe_intermediate_size": 32}
    shape = SHAPE | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = AutoConfig.for_model(kind, **shape, **own, num_experts_per_tok=2, initializer_range=0.2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "m")
    tiny_tokenizer.write_tokenizer(tmp_path / "m")
    metrics = quantize(tmp_path / "m", tmp_path / "q", scheme="w8a16", max_kl=0.01)
    assert (metrics["num_quantized"], metrics["num_kept"]) == (2 * (4 + 3 * 3), 3)
    assert metrics["parity"]["kl_mean"] > 0
    said = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert sum(name.endswith(".gate") for name in said["ignore"]) == 2
    # of methods that look at data, experts are rounded to the nearest step, and the rest is calibrated
    rows = {"seen": held_out, "method": "gptq", "calibration_tokens": 200}
    assert quantize(tmp_path / "m", tmp_path / "g", **rows)["num_quantized"] == 2 * (4 + 3 * 3)
    # an expert that another expert's numbers stand for is found
    file = tmp_path / "q" / "model.safetensors"
    tensors = load_file(file)
    swapped = sorted(name for name in tensors if ".layers.1." in name and ".experts.0." in name)
    for name in swapped:
        other = name.replace("experts.0.", "experts.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]
    save_file(tensors, file)
    streamed = StreamedModel(tmp_path / "m")
    rows_of = [row["input_ids"] for row in tiny_model.make_rows(4)]
    with open_weights(tmp_path / "m") as source, open_weights(tmp_path / "q") as result:
        report = compare(
            streamed,
            streamed,
            read_source=by_class(lambda name: read_float32(source, name), source.where),
            read_result=by_class(lambda name: read_float32(result, name), source.where),
            plan=None,
            rows=rows_of,
            threads=1,
        )
    assert report["kl_mean"] > 0.05


def test_config_says_what_each_layer_is(base: Path, tmp_path: Path) -> None:
    quantize(base, tmp_path / "q", rule=["down_proj=w8a16"], parity="off")
    said = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert (said["format"], said["ignore"]) == ("pack-quantized", ["lm_head"])
    groups = sorted((g["weights"]["num_bits"], len(g["targets"])) for g in said["config_groups"].values())
    assert groups == [(4, 12), (8, 2)]
    assert (tmp_path / "q" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w4a16", "w8a16", "w8a8", "fp8"])
def test_smollm2_stays_near_its_source(scheme: str, tmp_path: Path) -> None:
    """Through transformers and compressed-tensors as others load it, on prompts; and the report says what they find."""
    from assets import smollm2
    from transformers import AutoModelForCausalLM

    from postmill.stages.shared.parity import prompt_ids

    pytest.importorskip("compressed_tensors")
    base = smollm2()
    if base is None:
        pytest.skip("no SmolLM2 here")
    report = quantize(base, tmp_path / "q", scheme=scheme, group_size=64)["parity"]
    source, found = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (base, tmp_path / "q"))
    kl = []
    with torch.inference_mode():
        for ids in prompt_ids(base):
            p, q = (m(torch.tensor([ids])).logits[0].log_softmax(-1) for m in (source, found))
            kl.append((p.exp() * (p - q)).sum(-1))
    assert float(torch.cat(kl).mean()) == pytest.approx(report["kl_mean"], rel=0.05)
