"""LoRA's default says which experts and layers of a mixture stay as they are."""

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from postmill.stages.shared.hf import quiet_libraries  # noqa: E402
from postmill.stages.train.tuners.frozen import frozen_parts, say_frozen  # noqa: E402
from postmill.stages.train.tuners.targets import find_targets  # noqa: E402

SIZE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
LATENT = {
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
STACKS = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]


def adapted(config, **more):
    base = transformers.AutoModelForCausalLM.from_config(config)
    with quiet_libraries():
        settings = {"target_modules": find_targets(base, ["all-linear"], "lora"), "task_type": "CAUSAL_LM"}
        return peft.get_peft_model(base, peft.LoraConfig(**settings, **more))


def mixtral():
    return transformers.MixtralConfig(**SIZE, num_local_experts=4)


def test_experts_without_an_adapter_are_named(capsys):
    model = adapted(mixtral())
    assert frozen_parts(model) == (STACKS, [])
    say_frozen(model)
    said = capsys.readouterr().err
    assert "the experts (mlp.experts.down_proj, mlp.experts.gate_up_proj) get no adapter" in said
    assert "--lora.parameters mlp.experts.down_proj --lora.parameters mlp.experts.gate_up_proj adapts them" in said


def test_the_advice_helps():
    assert frozen_parts(adapted(mixtral(), target_parameters=STACKS)) == ([], [])


def test_layers_that_peft_leaves_out_for_the_experts_are_named(capsys):
    config = transformers.DeepseekV3Config(**SIZE, **LATENT, n_shared_experts=1)
    model = adapted(config)
    stacks, layers = frozen_parts(model)
    assert stacks == []
    assert {"mlp.down_proj", "mlp.shared_experts.down_proj"} <= set(layers)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert not any("shared_experts" in name for name in trained)
    say_frozen(model)
    assert "peft adapts this family's experts in place of mlp.down_proj" in capsys.readouterr().err


def test_a_model_without_experts_says_nothing(capsys):
    model = adapted(transformers.LlamaConfig(**SIZE))
    say_frozen(model)
    assert frozen_parts(model) == ([], []) and capsys.readouterr().err == ""
