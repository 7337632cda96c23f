"""GGUF files: read by transformers and the `gguf` package as the same model; llama.cpp's mixes; the Modelfile."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import tiny_tokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from postmill.io.errors import ConfigError, StageError  # noqa: E402
from postmill.io.safetensors_file import open_weights  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.quantize.config import STAGE, Quantize  # noqa: E402
from postmill.stages.quantize.gguf import export  # noqa: E402
from postmill.stages.quantize.gguf.mix import FILE_TYPES, Shape, type_of  # noqa: E402
from postmill.stages.quantize.gguf.ollama import find_format, modelfile  # noqa: E402
from postmill.stages.quantize.gguf.vocabulary import describe_vocabulary  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.shared.quantized_weights import read_float32  # noqa: E402

LOOSE = {"max_ppl_increase": 1e9, "min_agreement": 0.0, "max_kl": 1e9}
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 300}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model.write_model(tmp_path_factory.mktemp("given") / "base", dtype="bfloat16", **SHAPE)
    (folder / "chat_template.jinja").unlink()
    return tiny_tokenizer.write_tokenizer(folder)


def write_model(folder: Path, kind: str, **options: Any) -> Path:
    """A random model of another architecture, its norms not all one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = SHAPE | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **(shape | {"initializer_range": 0.2, "max_position_embeddings": 256} | options)
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.save_pretrained(folder)
    return tiny_tokenizer.write_tokenizer(folder)


def export_model(base: Path, out: Path, threads: int = 2, **options: Any) -> Any:
    config = make(Quantize, **({"scheme": "f32"} | LOOSE | options))
    return run_stage(STAGE, config, {"model": [str(base)]}, out, Options(threads=threads)).manifest


def logits(path: Path, **options: Any) -> "torch.Tensor":
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()
    with torch.inference_mode():
        return model(torch.tensor([[3, 9, 27, 14, 2, 41]])).logits[0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 128}),  # transformers does not read another one from the file
    ],
)
def test_transformers_computes_the_same_from_the_file(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", kind, **options)
    assert export_model(model, tmp_path / "g").kind == "gguf"
    torch.testing.assert_close(logits(tmp_path / "g", gguf_file="model-f32.gguf"), logits(model), rtol=1e-4, atol=1e-4)
    report = json.loads((tmp_path / "g" / "parity.json").read_text())
    assert (report["kl_mean"], report["top1_agreement"]) == (0.0, 1.0)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_one_tensor_for_a_layer(kind: str, tmp_path: Path) -> None:
    """The gate reads the file back through the model's own class: nothing may differ."""
    own = {"num_local_experts": 3} if kind == "mixtral" else {"num_experts": 3, "moe_intermediate_size": 32}
    model = write_model(tmp_path / "m", kind, num_experts_per_tok=2, **own)
    report = export_model(model, tmp_path / "g").metrics["parity"]
    assert (report["kl_mean"], report["top1_agreement"]) == (0.0, 1.0)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "g" / "model-f32.gguf").tensors}
    with open_weights(model) as weights:
        name = next(
            n
            for n in weights.where
            if n.endswith(("layers.1.mlp.experts.2.up_proj.weight", "1.block_sparse_moe.experts.2.w3.weight"))
        )
        assert tensors["blk.1.ffn_up_exps.weight"].data[2].tobytes() == bytes(weights.file_of(name).read(name))
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"
    assert len(tensors) == (2 + 2 * 10 + 1) + (4 if kind == "qwen3_moe" else 0)


def test_blocks_are_those_of_gguf_and_vectors_are_whole(base: Path, tmp_path: Path) -> None:
    metrics = export_model(base, tmp_path / "g", scheme="q8_0").metrics
    assert metrics["types"] == {"f32": 5, "q8_0": 15}
    assert metrics["bytes_after"] < metrics["bytes_before"]
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "g" / "model-q8_0.gguf").tensors}
    with open_weights(base) as weights:
        for name, own in {
            "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
            "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
            "token_embd.weight": "model.embed_tokens.weight",
        }.items():
            theirs = gguf.quants.quantize(read_float32(weights, own).numpy(), gguf.GGMLQuantizationType.Q8_0)
            assert found[name].data.tobytes() == theirs.tobytes()
        # two halves of a head become pairs
        q = read_float32(weights, "model.layers.0.self_attn.q_proj.weight").view(4, 2, 8, 64)
        theirs = gguf.quants.quantize(q.transpose(1, 2).reshape(64, 64).numpy(), gguf.GGMLQuantizationType.Q8_0)
        assert found["blk.0.attn_q.weight"].data.tobytes() == theirs.tobytes()
    assert found["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert "output.weight" not in found


def test_metadata_says_what_llama_cpp_asks_for(base: Path, tmp_path: Path) -> None:
    export_model(base, tmp_path / "g", scheme="q4_k_m")
    said = {k: v.contents() for k, v in gguf.GGUFReader(tmp_path / "g" / "model-q4_k_m.gguf").fields.items()}
    stored = json.loads((base / "tokenizer.json").read_text())
    assert said["general.architecture"] == "llama"
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert (said["llama.block_count"], said["llama.attention.head_count_kv"]) == (2, 2)
    assert (said["llama.rope.dimension_count"], said["llama.rope.freq_base"]) == (16, 10000.0)
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert all(tokens[number] == text for text, number in stored["model"]["vocab"].items())
    assert len(tokens) == 300
    assert (tokens[-1], kinds[-1]) == ("[PAD299]", gguf.TokenType.UNUSED)
    end = tokens.index("<|im_end|>")
    assert kinds[end] == gguf.TokenType.CONTROL
    assert said["tokenizer.ggml.eos_token_id"] == end
    assert said["tokenizer.ggml.merges"][:2] == ["h e", "he r"]
    assert said["tokenizer.chat_template"] == tiny_tokenizer.TEMPLATE


def test_one_thread_and_four_write_the_same_bytes(base: Path, tmp_path: Path) -> None:
    files = []
    for threads in (1, 4):
        export_model(base, tmp_path / str(threads), threads, scheme="q5_k_m", rule=["layers\\.0\\..*q_proj=q8_0"])
        files.append((tmp_path / str(threads) / "model-q5_k_m.gguf").read_bytes())
    assert files[0] == files[1]
    reader = gguf.GGUFReader(tmp_path / "1" / "model-q5_k_m.gguf")
    # 64 columns hold no block of 256
    assert {t.name: t.tensor_type.name for t in reader.tensors}["blk.0.attn_q.weight"] == "Q8_0"
    assert {t.name: t.tensor_type.name for t in reader.tensors}["blk.0.attn_k.weight"] == "Q5_1"


def test_mixes_are_those_of_llama_quantize() -> None:
    """Of a model of 32 layers, wide enough, its head its own; types as in published files of Llama 3 8B."""
    model = Shape(32, 4, 0, False)

    def kinds(scheme: str, tensor: str) -> list[int]:
        return [n for n in range(32) if type_of(scheme, f"blk.{n}.{tensor}.weight", (64, 4096), model) == "q6_k"]

    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert kinds("q4_k_m", "attn_v") == kinds("q4_k_m", "ffn_down") == kinds("q5_k_m", "ffn_down") == more
    assert kinds("q4_k_m", "ffn_up") == kinds("q4_k_s", "attn_v") == []
    for scheme, tensor, kind in [
        ("q4_k_m", "output", "q6_k"),
        ("q4_k_m", "token_embd", "q4_k"),
        ("q8_0", "output", "q8_0"),
        ("q3_k_l", "blk.9.attn_output", "q5_k"),
        ("q3_k_m", "blk.1.attn_v", "q5_k"),
        ("q2_k", "blk.9.attn_v", "q4_k"),
        ("q4_k_s", "blk.3.ffn_down", "q5_k"),
        ("q4_k_s", "blk.4.ffn_down", "q4_k"),
        ("iq4_xs", "output", "q6_k"),
        ("iq4_xs", "blk.9.attn_v", "q5_k"),
        ("iq4_nl", "blk.3.ffn_down", "q5_k"),
        ("iq4_xs", "blk.4.ffn_down", "iq4_xs"),
        ("iq4_nl", "blk.4.attn_output", "iq4_nl"),
    ]:
        assert type_of(scheme, f"{tensor}.weight", (64, 4096), model) == kind
    assert type_of("q4_k_m", "token_embd.weight", (64, 4096), model._replace(tied=True)) == "q6_k"
    assert {type_of("q4_k_m", "blk.5.attn_q.weight", (64, n), model) for n in (512, 96, 40)} == {"q4_k", "q5_0", "f16"}
    assert type_of("iq4_xs", "blk.5.attn_q.weight", (64, 96), model) == "iq4_nl"
    assert set(FILE_TYPES.values()) <= {int(kind) for kind in gguf.LlamaFileType}


def test_rotation_scaled_as_in_llama_3_is_written_as_factors(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64, "rope_theta": 500.0}
    model = write_model(tmp_path / "m", "llama", rope_parameters=rope)
    export_model(model, tmp_path / "g")
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(model), torch.device("cpu"))
    plain = 500.0 ** -(torch.arange(0, 16, 2) / 16)
    found = next(t for t in gguf.GGUFReader(tmp_path / "g" / "model-f32.gguf").tensors if t.name == "rope_freqs.weight")
    torch.testing.assert_close(plain / torch.from_numpy(found.data.copy()), scaled)
    assert found.data[0] == 1
    assert found.data[-1] == 8


def _special(number: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, "special": True} | flags


def test_a_tokenizer_of_pieces_has_scores_in_the_order_of_its_merges(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", "llama")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "\u2581": 4, "a": 5, "b": 6, "ab": 7, "\u2581ab": 8}
    stored = {
        "added_tokens": [_special(n, text) for text, n in list(vocabulary.items())[:3]],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]},
        "pre_tokenizer": None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"], ["\u2581", "ab"]], "unk_token": "<unk>"},
    }
    stored["model"] |= {"byte_fallback": True}
    (model / "tokenizer.json").write_text(json.dumps(stored))
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "unk_token": "<unk>"}))
    export_model(model, tmp_path / "g", parity="off")
    said = {k: v.contents() for k, v in gguf.GGUFReader(tmp_path / "g" / "model-f32.gguf").fields.items()}
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    assert said["tokenizer.ggml.token_type"][:5] == [2, 3, 3, 6, 1]
    scores = said["tokenizer.ggml.scores"]
    assert scores[7] > scores[8] > scores[5] == scores[6]


def test_modelfile_has_a_template_only_where_it_says_the_same(base: Path) -> None:
    text, has_template = modelfile(base, "m.gguf", 100_000)
    assert has_template
    lines = text.splitlines()
    assert lines[0] == "FROM ./m.gguf"
    assert 'PARAMETER stop "<|im_end|>"' not in lines  # the tiny model's configuration names id 2 as its end
    assert "PARAMETER num_ctx 8192" in lines

    def told(conversation: list[dict[str, str]]) -> str:
        own = [] if conversation[0]["role"] == "system" else [{"role": "system", "content": "Be kind."}]
        turns = (f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in own + conversation)
        return "".join(turns) + "<|im_start|>assistant\n"

    assert find_format(told, "")[1] == "Be kind."
    assert find_format(lambda turns: told(turns) + "<think>\n", "") == ("", None)
    assert find_format(lambda turns: told(turns).replace("assistant", "model"), "") == ("", None)


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        ({"method": "hqq"}, {}, "GGUF's types choose codes by themselves"),
        ({"layout": "awq"}, {}, "--layout awq: --scheme f32 makes a GGUF file"),
        ({"rule": ["q_proj=w4a16"]}, {}, "--rule q_proj=w4a16: expected REGEX=TYPE"),
        ({"rule": ["nothing=q8_0"]}, {}, "matches no weight"),
        ({}, {"hidden_act": "gelu"}, "hidden_act gelu"),
        ({}, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type dynamic"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_a_line(
    options: dict[str, Any], change: dict[str, Any], says: str, base: Path, tmp_path: Path
) -> None:
    if change:
        base = write_model(tmp_path / "m", "llama", **change)
    with pytest.raises(ConfigError) as caught:
        export_model(base, tmp_path / "q", **options)
    assert says in str(caught.value)
    assert not (tmp_path / "q").exists()


def test_other_architectures_and_splitting_rules_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", "olmo2")
    with pytest.raises(ConfigError, match="model_type olmo2: is not written as GGUF here"):
        export_model(model, tmp_path / "g")
    model = write_model(tmp_path / "n", "llama")
    stored = json.loads((model / "tokenizer.json").read_text())
    stored["pre_tokenizer"] = {"type": "Whitespace"}
    (model / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="text is split by a rule"):
        export_model(model, tmp_path / "g")


def _nibbles(values: Any, kind: str) -> Any:
    raw = _ENCODE(values, kind)
    return raw if kind == "f32" else torch.cat([raw[..., :2], raw[..., 2:].flip(-1)], -1)


_ENCODE = export.encode_rows


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("_pairs_together", lambda weight, heads: weight),
        ("encode_rows", lambda values, kind: _ENCODE(values.flip(0), kind)),
        ("encode_rows", lambda values, kind: _ENCODE(values * (4 if len(values) > 90 else 1), kind)),
        ("encode_rows", _nibbles),
    ],
    ids=["rotation", "rows", "scales", "order"],
)
def test_bugs_of_a_writer_fail_the_gate(
    part: str, damage: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, part, damage)
    with pytest.raises(StageError, match="nothing was committed"):
        export_model(base, tmp_path / "g", scheme="q8_0", max_ppl_increase=None, min_agreement=None, max_kl=None)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("name", "rule"), [("qwen3_tokenizer", "qwen2"), ("llama31_tokenizer", "llama-bpe"), ("smollm2", "smollm")]
)
def test_splitting_rules_of_real_tokenizers_have_names(name: str, rule: str) -> None:
    import assets

    folder = getattr(assets, name)()
    if folder is None:
        pytest.skip(f"no {name} here")
    said = describe_vocabulary(folder, 152_000)
    assert said["tokenizer.ggml.pre"] == rule
    assert said["tokenizer.ggml.add_bos_token"] == (rule == "llama-bpe")
