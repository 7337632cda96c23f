"""Models with a state along the tokens: rows of a bin are what they are alone, in loss, gradient and scores."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from tuner_laws import config, load, loss_of, losses, trained  # noqa: E402

from postmill.io.errors import ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared import attention  # noqa: E402
from postmill.stages.shared.apart import keeps_apart, settle  # noqa: E402
from postmill.stages.shared.asked import Ask, Linear  # noqa: E402
from postmill.stages.shared.batch import collate  # noqa: E402
from postmill.stages.shared.forward import Forward  # noqa: E402
from postmill.stages.train import probe  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402

CPU = torch.device("cpu")
COMMON = {
    "vocab_size": tiny_model.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SCAN = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "Mamba": {"state_size": 8},
    "Mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
    "FalconH1": HEADS | SCAN | {"mamba_d_ssm": 64},
    "Jamba": {
        **HEADS,
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "Qwen3Next": HEADS | DELTA | MIXED | EXPERTS | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "Qwen3_5": HEADS | DELTA | MIXED,
    "Rwkv": {"attention_hidden_size": 32},
    "xLSTM": {"num_heads": 4, "num_blocks": 2, "qk_dim_factor": 0.5, "v_dim_factor": 1.0, "chunk_size": 16},
    "RecurrentGemma": HEADS | {"num_hidden_layers": 3, "lru_width": 32},
    "Lfm2": HEADS | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}


def write(folder, family):
    """A folder of a tiny model of `family`, with the tokenizer of the tiny Llama."""
    torch.manual_seed(0)
    text = "TextConfig" if family == "Qwen3_5" else "Config"
    made = getattr(transformers, f"{family}{text}")(**(COMMON | FAMILIES[family]))
    getattr(transformers, f"{family}ForCausalLM")(made).save_pretrained(folder / "base")
    plain = tiny_model.write_model(folder / "plain")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / "base" / name).write_bytes((plain / name).read_bytes())
    return folder / "base"


def build(path):
    kernel = attention.choose("auto", CPU, torch.float32)
    kind = transformers.AutoModelForCausalLM
    try:
        net = kind.from_pretrained(path, dtype=torch.float32, attn_implementation=kernel)
    except ValueError:  # a family without attention
        net = kind.from_pretrained(path, dtype=torch.float32)
    return Forward(net, compute_dtype=torch.float32, backend="reference")


def alone(net, found):
    """Weighted loss of each row of a bin, from the model's own logits."""
    total = torch.zeros(())
    for start, end in zip(found.cu_seqlens[:-1], found.cu_seqlens[1:], strict=True):
        ids = torch.from_numpy(found.input_ids[start:end].astype(np.int64))
        weights = torch.from_numpy(found.weights[start:end])
        logp = net(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        total = total - (weights[1:] * logp.gather(-1, ids[1:, None])[:, 0]).sum()
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_bin_are_what_they_are_alone(tmp_path, family, capsys):
    torch.set_num_threads(1)
    base = write(tmp_path, family)
    reader = PackedReader(tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(4, seed=3), 64))
    found = reader.bin(0)
    assert len(found.cu_seqlens) > 2
    forward = build(base)
    assert not keeps_apart(forward, CPU)
    probe.check(forward, reader, torch.float32, CPU, loss_kernel="reference", cut=False)
    assert capsys.readouterr().err.count("one by one") == 1
    parameters = [p for p in forward.parameters() if p.requires_grad]
    batch = collate([found])
    ours = forward(batch, Ask(linear=Linear(batch.weights_T, 1.0))).loss
    expected = alone(forward.model, found)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        if theirs is not None and mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max() + 1))


def test_attention_keeps_rows_apart_and_nothing_is_said(tmp_path, capsys):
    forward = build(tiny_model.write_model(tmp_path))
    capsys.readouterr()
    assert not settle(forward, "train", CPU)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("family", ["Mamba2", "Qwen3_5"])
def test_adapters_train_resume_and_load(tmp_path, family):
    torch.set_num_threads(1)
    base = write(tmp_path, family)
    tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(16, seed=3))
    tiny_model.write_packed(tmp_path / "valid", base, tiny_model.make_rows(4, seed=9))
    run = trained(tmp_path, config("lora", rank=4), tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    tuned = peft.PeftModel.from_pretrained(load(base), str(run)).eval()
    assert loss_of(tuned, tmp_path / "valid") == pytest.approx(valid, abs=2e-6)


def test_scores_are_of_rows_alone(tmp_path):
    torch.set_num_threads(1)
    base = write(tmp_path, "Mamba")
    packed = tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(6, seed=3), 64)
    run_stage(SCORE, Score(), {"rows": [str(packed)], "model": [str(base)]}, tmp_path / "scores", Options(threads=1))
    reader, net, scores = PackedReader(packed), load(base), ScoresReader(tmp_path / "scores")
    found = reader.bin(0)
    for row, start, end in zip(found.rows, found.cu_seqlens[:-1], found.cu_seqlens[1:], strict=True):
        ids = torch.from_numpy(found.input_ids[start:end].astype(np.int64))
        with torch.no_grad():
            logp = net(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        given = scores.tokens(np.array([row]), np.array([end - start]), "logp")[1:]
        np.testing.assert_allclose(given[~np.isnan(given)], logp.numpy()[~np.isnan(given)], atol=1e-5)


def test_ranks_do_not_share_a_model_that_is_computed_row_by_row(tmp_path):
    base = write(tmp_path, "Mamba")
    reader = PackedReader(tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(4, seed=3), 64))
    with pytest.raises(ConfigError, match="computed row by row; leave them out") as error:
        probe.check(build(base), reader, torch.float32, CPU, loss_kernel="reference", cut=True)
    assert error.value.code == 2


def test_layers_that_are_never_called_get_no_adapter(tmp_path):
    base = write(tmp_path, "Jamba")
    with pytest.raises(ConfigError, match="dt_proj: jamba layers never call it"):
        tiny_model.start(Lora(rank=2, targets=["dt_proj"]), base)
    net = tiny_model.start(Lora(rank=2), base)
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    net(input_ids=torch.arange(3, 19)[None], use_cache=False).logits.square().mean().backward()
    assert [
        name for name, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ] == []
