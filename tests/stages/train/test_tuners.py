"""Every tuner: trains, is stopped and goes on to the same bytes, loads back in its library, and merges.

The run's own validation loss is the judge: it was computed by the model that was trained, packed and fused, and must be
what the saved adapter, loaded by peft into the base as anybody would, gives each row alone.
"""

import json

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tuner_laws import config, given, load, loss_of, losses, trained  # noqa: E402

from postmill.io.errors import ConfigError  # noqa: E402
from postmill.stages.merge.config import STAGE as MERGE  # noqa: E402
from postmill.stages.merge.config import Merge  # noqa: E402
from postmill.stages.merge.methods.table import METHODS  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.shared.hf import add_adapters  # noqa: E402
from postmill.stages.train.config import STAGE  # noqa: E402
from postmill.stages.train.optimizers import OPTIMIZERS  # noqa: E402

SMALL = {
    "loha": {"rank": 2},
    "lokr": {"rank": 2, "decompose_both": True},
    "delora": {"rank": 2},
    "gralora": {"rank": 4, "plain_rank": 2},
    "hira": {"rank": 2},
    "glora": {"rank": 2},
    "deft": {"rank": 2},
    "peanut": {"rank": 2, "depth": 2},
    "psoft": {"rank": 4},
    "osf": {"kept_rank": 4},
    "oft": {"block_size": 4},
    "boft": {"block_size": 4},
    "hra": {"rank": 2},
    "road": {"group_size": 4, "variant": "road_2"},
    "vera": {"rank": 4},
    "pvera": {"rank": 4},
    "randlora": {"rank": 4},
    "vblora": {"rank": 2, "vectors": 8, "vector_length": 4},
    "fourierft": {"frequencies": 20},
    "waveft": {"wavelets": 20},
    "c3a": {"block_size": 4},
    "unilora": {"length": 32},
    "tinylora": {"length": 4},
    "frod": {},
    "ia3": {},
    "miss": {"rank": 4, "variant": "bat"},
    "shira": {"rank": 2},
    "supertuning": {"sparsity": 0.9},
    "ln-tuning": {},
    "beft": {},
    "trainable-tokens": {"tokens": [2, 5, 9, 11, 30]},
}
"""Options that fit a model of 24 numbers a token."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tuners")
    base = tiny_model.write_model(folder / "base")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(16, seed=3))
    tiny_model.write_packed(folder / "valid", base, tiny_model.make_rows(4, seed=9))
    return folder


@pytest.mark.parametrize("name", SMALL)
def test_methods_of_peft(world, tmp_path, name):
    proves(world, tmp_path, config(name, **SMALL[name]))


@pytest.mark.parametrize(
    "options",
    [
        {"init": "gaussian"},
        {"init": "orthogonal"},
        {"init": "pissa", "rslora": True},
        {"init": "olora"},
        {"init": "eva"},
        {"init": "corda"},
        {"init": "lora-ga"},
        {"dora": True, "rslora": True, "dropout": 0.1},
        {"lr_ratio": 16.0},
        {"tokens": [2, 5, 9, 30]},
        {"shifted_group": 4},
    ],
    ids=str,
)
def test_first_weights_and_rates_of_lora(world, tmp_path, options):
    proves(world, tmp_path, config("lora", rank=4, init_bins=3, **options))


def test_adalora(world, tmp_path):
    cfg = config("adalora", rank=4, target_rank=2, wait=0.0, settle=0.4, lr_groups=["lora_A=2"])
    run = proves(world, tmp_path, cfg)
    factors = load_file(run / "adapter_model.safetensors")
    kept = sum(int((t != 0).sum()) for name, t in factors.items() if name.endswith("lora_E"))
    assert kept == 2 * sum(name.endswith("lora_E") for name in factors)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("full", {"freeze": ["embed", r"layers\.0\."], "unfreeze": [r"0\.mlp"], "lr_groups": [r"layers\.1=0.5"]}),
        ("full", {"unfreeze": ["norm"]}),
        ("lisa", {"layers": 1, "every": 2}),
        ("badam", {"every": 1}),
        ("badam", {"every": 2, "order": "descending", "outside": True}),
        ("llama-pro", {"blocks": 2}),
    ],
    ids=str,
)
def test_whole_models(world, tmp_path, name, options):
    run = trained(world, config(name, **options), tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    loaded, base = load(run), load(world / "base")
    assert loss_of(loaded, world / "valid") == pytest.approx(valid, abs=2e-6)
    before = dict(base.named_parameters())
    moved = {n for n, p in loaded.named_parameters() if n not in before or not torch.equal(p, before[n])}
    if name == "full" and "freeze" in options:
        assert moved == {n for n in before if ("embed" not in n and "layers.0." not in n) or "0.mlp" in n}
    elif name == "full":
        assert moved == {n for n in before if "norm" in n}
    elif name == "llama-pro":
        assert loaded.config.num_hidden_layers == 4
        assert {n.split(".")[2] for n in moved if ".layers." in n} == {"1", "2", "3"}  # 2 is the old 1
        assert torch.equal(loaded.model.layers[2].mlp.up_proj.weight, base.model.layers[1].mlp.up_proj.weight)
    else:
        both = name == "badam" and options["every"] == 1
        layers = {n.split(".")[2] for n in moved if ".layers." in n}
        assert layers <= {"0", "1"}
        assert not both or layers == {"0", "1"}
        assert ("model.embed_tokens.weight" in moved) == (name == "lisa" or bool(options.get("outside")))


@pytest.mark.parametrize("name", OPTIMIZERS.table)
def test_every_optimizer_goes_on_to_the_same_bytes(world, tmp_path, name):
    small = {"rank": 4, "gap": 2} if name in {"galore", "q-galore", "apollo"} else {}
    run = trained(world, config("full", optimizer=name, **small), tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    assert loss_of(load(run), world / "valid") == pytest.approx(valid, abs=2e-6)


def test_adapters_on_stacks_of_experts(tmp_path):
    settings = {
        "vocab_size": tiny_model.VOCAB,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**settings)).save_pretrained(tmp_path / "base")
    plain = tiny_model.write_model(tmp_path / "plain")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / "base" / name).write_bytes((plain / name).read_bytes())
    for name, rows in (("packed", tiny_model.make_rows(16, seed=3)), ("valid", tiny_model.make_rows(4, seed=9))):
        tiny_model.write_packed(tmp_path / name, tmp_path / "base", rows)
    stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    cfg = config("lora", rank=4, targets=["q_proj"], parameters=stacks)
    run = trained(tmp_path, cfg, tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    assert json.loads((run / "adapter_config.json").read_text())["target_parameters"] == sorted(stacks)
    tuned = peft.PeftModel.from_pretrained(load(tmp_path / "base"), str(run)).eval()
    assert loss_of(tuned, tmp_path / "valid") == pytest.approx(valid, abs=2e-6)
    given = {"parts": [str(run)], "model": [str(tmp_path / "base")]}
    run_stage(MERGE, Merge(parity="off"), given, tmp_path / "merged", Options(threads=1))
    assert loss_of(load(tmp_path / "merged"), tmp_path / "valid") == pytest.approx(valid, abs=2e-5)


def test_new_layers_change_nothing_at_first(world):
    from postmill.stages.train.tuners.llama_pro_model import expand

    model = load(world / "base")
    before = loss_of(model, world / "valid")
    expand(model, 2)
    assert len(model.model.layers) == 4
    assert loss_of(model, world / "valid") == pytest.approx(before, abs=1e-7)


def test_groups_of_rows():
    from postmill.stages.shared.attention import in_groups

    assert in_groups((0, 5, 6, 16), 4, 0) == (0, 4, 5, 6, 10, 14, 16)
    assert in_groups((0, 5, 6, 16), 4, 2) == (0, 2, 5, 6, 8, 12, 16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("full", {"freeze": ["nope"]}, "--full.freeze nope: fits no parameter"),
        ("full", {"freeze": ["("]}, r"--full.freeze \(: no regular expression"),
        ("full", {"lr_groups": ["nope=2"]}, "--lr-groups nope=2: fits no trained parameter"),
        ("full", {"lr_groups": ["norm"]}, "--lr-groups norm: no = in it"),
        ("llama-pro", {"blocks": 3}, "does not divide the model's 2 layers"),
        ("boft", {"factors": 2}, "--boft.factors 2: PEFT's CUDA extension"),
    ],
)
def test_what_cannot_be_trained_is_refused(world, tmp_path, name, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_stage(STAGE, config(name, **options), given(world), tmp_path / "run", Options(threads=1))
    assert error.value.code == 2


def proves(world, tmp_path, cfg):
    run = trained(world, cfg, tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    torch.manual_seed(1234)
    base = load(world / "base")
    assert abs(loss_of(base, world / "valid") - valid) > 1e-4
    loaded = peft.PeftModel.from_pretrained(base, str(run)).eval()
    assert loss_of(loaded, world / "valid") == pytest.approx(valid, abs=2e-6)
    merged = {"parts": [str(run)], "model": [str(world / "base")]}
    if json.loads((run / "adapter_config.json").read_text())["peft_type"] in METHODS:
        run_stage(MERGE, Merge(parity="off"), merged, tmp_path / "merged", Options(threads=1))
        assert loss_of(load(tmp_path / "merged"), world / "valid") == pytest.approx(valid, abs=2e-5)
    else:
        with pytest.raises(ConfigError, match="merge"):
            run_stage(MERGE, Merge(parity="off"), merged, tmp_path / "merged", Options(threads=1))
    return run


def test_every_method_is_tried():
    from postmill.stages.train.tuners.table import TUNERS

    methods = {name for name, place in TUNERS.table.items() if ".peft_methods." in place}
    assert methods == SMALL.keys()


def test_what_peft_refuses_is_said_in_one_line(world, tmp_path):
    with pytest.raises(ConfigError, match="--tuner boft: peft says") as error:
        run_stage(STAGE, config("boft", block_size=5), given(world), tmp_path / "run", Options(threads=1))
    assert error.value.code == 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["PromptTuningConfig", "LilyConfig"])
def test_adapters_whose_effect_would_be_lost_are_refused(world, tmp_path, method):
    """hf.add_adapters gave their base without a word: scores of a prompt-tuned model were those of the plain one."""
    options = {"num_virtual_tokens": 2} if method == "PromptTuningConfig" else {"r": 2, "target_modules": ["q_proj"]}
    adapter = getattr(peft, method)(task_type="CAUSAL_LM", **options)
    peft.get_peft_model(load(world / "base"), adapter).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"is not computed here: it (puts vectors|mixes experts)") as error:
        add_adapters(load(world / "base"), {tmp_path / "adapter": 1.0})
    assert error.value.code == 2
