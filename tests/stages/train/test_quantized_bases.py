"""Adapters on quantized bases: the numbers of the codes, gradients through them, and the way back onto the source."""

import functools
import json
import shutil

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
peft = pytest.importorskip("peft")
pytest.importorskip("postmill._native", reason="native module not built")

import numpy as np  # noqa: E402
import tiny_model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tuner_laws import config, load, loss_of, losses, trained  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.safetensors_file import open_weights  # noqa: E402
from postmill.stages.merge.config import STAGE as MERGE  # noqa: E402
from postmill.stages.merge.config import Merge  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.quantize.config import STAGE as QUANTIZE  # noqa: E402
from postmill.stages.quantize.config import Quantize  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.shared.hf import load_model  # noqa: E402
from postmill.stages.shared.quantized_base import PackedLinear  # noqa: E402
from postmill.stages.shared.quantized_weights import read_float32, read_tensor  # noqa: E402
from postmill.stages.train.config import STAGE  # noqa: E402
from postmill.stages.train.tuners.interface import Start  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402
from postmill.stages.train.tuners.lora_model import take_up_loss  # noqa: E402

SCHEMES = {
    "w4": {"scheme": "w4a16", "group_size": 32},
    "w4 asymmetric hqq": {"scheme": "w4a16", "group_size": 32, "symmetric": False, "method": "hqq"},
    "w8": {"scheme": "w8a16", "group_size": -1},
}

SHAPE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A source model, what quantize makes of it, and data."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases")
    source = tiny_model.write_model(folder / "source", **SHAPE)
    for name, scheme in SCHEMES.items():
        cfg = make(Quantize, parity="off", **scheme)
        run_stage(QUANTIZE, cfg, {"model": [str(source)]}, folder / name, Options(threads=1))
    tiny_model.write_packed(folder / "packed", source, tiny_model.make_rows(16, seed=3))
    tiny_model.write_packed(folder / "valid", source, tiny_model.make_rows(4, seed=9))
    return folder


def with_base(world, tmp_path, name):
    """A folder of links, as `given` wants it, with `name` as the base."""
    folder = tmp_path / "world"
    folder.mkdir()
    for link, target in (("packed", "packed"), ("valid", "valid"), ("base", name)):
        (folder / link).symlink_to(world / target)
    return folder


@pytest.mark.parametrize("name", SCHEMES)
def test_layers_compute_with_the_numbers_of_their_codes(world, name):
    model, plain = load_model(world / name, "float32"), load_model(world / "source", "float32")
    packed = {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    assert len(packed) == 14
    with open_weights(world / name) as weights:
        for module in packed:
            plain.get_submodule(module).weight.data = read_float32(weights, f"{module}.weight")
    ids = torch.arange(3, 20)[None]
    inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits, expected = model(inputs_embeds=inputs).logits, plain(inputs_embeds=inputs).logits
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    (ours,), (theirs,) = (torch.autograd.grad(out.square().mean(), inputs) for out in (logits, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert float((load_model(world / "source", "float32")(ids).logits - logits).abs().max()) > 1e-4


@pytest.mark.parametrize("name", SCHEMES)
def test_an_adapter_trains_resumes_loads_and_merges_onto_the_source(world, tmp_path, name):
    run = trained(with_base(world, tmp_path, name), config("lora", rank=4, dropout=0.1), tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    tuned = peft.PeftModel.from_pretrained(load_model(world / name, "float32"), str(run)).eval()
    assert loss_of(tuned, world / "valid") == pytest.approx(valid, abs=2e-6)
    parts = {"parts": [str(run)]}
    with pytest.raises(ConfigError, match="its weights are quantized; pass the model before"):
        run_stage(
            MERGE, Merge(parity="off"), parts | {"model": [str(world / name)]}, tmp_path / "m", Options(threads=1)
        )
    run_stage(
        MERGE, Merge(parity="off"), parts | {"model": [str(world / "source")]}, tmp_path / "m", Options(threads=1)
    )
    on_source = peft.PeftModel.from_pretrained(load(world / "source"), str(run)).eval()
    assert loss_of(load(tmp_path / "m"), world / "valid") == pytest.approx(
        loss_of(on_source, world / "valid"), abs=2e-5
    )
    other = tiny_model.write_model(tmp_path / "other", seed=5, **SHAPE)
    with pytest.raises(ArtifactError, match="trained on the model"):
        merge(run, other, tmp_path / "n")


def merge(run, base, out):
    run_stage(MERGE, Merge(parity="off"), {"parts": [str(run)], "model": [str(base)]}, out, Options(threads=1))


AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)


def words_of(codes, bits, nibbles=None):
    """Codes counted from zero, [rows, columns], as words along the columns, as the libraries describe it."""
    per_word = 32 // bits
    words = np.zeros((codes.shape[0], codes.shape[1] // per_word), np.uint32)
    for row, column in np.ndindex(codes.shape):
        word, place = divmod(column, per_word)
        at = place if nibbles is None else nibbles.index(place)
        words[row, word] |= np.uint32(int(codes[row, column]) << (at * bits))
    return words.view(np.int32)


def write_foreign(source, folder, method, bits=4, *, version="gptq", shuffled=False):
    """`source` as GPTQ or AWQ folders hold it, with random codes. Returns each weight in float64, by layer."""
    rng = np.random.default_rng(0)
    plain = load_model(source, "float32")
    tensors = {name: t.contiguous() for name, t in plain.state_dict().items() if name != "lm_head.weight"}
    expected = {}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        num_out, num_in = tensors.pop(name).shape
        layer, groups = name.removesuffix(".weight"), num_in // 32
        codes = rng.integers(0, 2**bits, (num_in, num_out))
        zeros = rng.integers(0, 2**bits, (groups, num_out))
        scales = rng.uniform(0.01, 0.03, (groups, num_out)).astype(np.float16)
        group = np.arange(num_in) // 32
        if shuffled:
            group = rng.permutation(group)
        expected[layer] = ((codes - zeros[group]) * scales.astype(np.float64)[group]).T
        stored = (zeros - 1) % 2**bits if method == "gptq" and version == "gptq" else zeros
        nibbles = AWQ_NIBBLES if method == "awq" else None
        words = words_of(codes, bits, nibbles) if method == "awq" else words_of(codes.T, bits).T
        tensors[f"{layer}.qweight"] = torch.from_numpy(np.ascontiguousarray(words))
        tensors[f"{layer}.qzeros"] = torch.from_numpy(words_of(stored, bits, nibbles))
        tensors[f"{layer}.scales"] = torch.from_numpy(scales)
        if method == "gptq":
            tensors[f"{layer}.g_idx"] = torch.from_numpy(group.astype(np.int32))
    shutil.copytree(source, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"] = {"quant_method": method, "bits": bits, "group_size": 32, "desc_act": shuffled}
    said["quantization_config"] |= {"checkpoint_format": version} if method == "gptq" else {"version": "gemm"}
    (folder / "config.json").write_text(json.dumps(said))
    return expected


FOREIGN = {
    "gptq": {"method": "gptq"},
    "gptq v2, 8 bits": {"method": "gptq", "bits": 8, "version": "gptq_v2"},
    "gptq, 2 bits": {"method": "gptq", "bits": 2},
    "gptq, act order": {"method": "gptq", "shuffled": True},
    "awq": {"method": "awq"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_layers_of_other_tools_have_the_numbers_of_the_formula(world, tmp_path, name):
    expected = write_foreign(world / "source", tmp_path / "base", **FOREIGN[name])
    model = load_model(tmp_path / "base", "float32")
    packed = {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    assert packed.keys() == expected.keys()
    assert len(packed) == 14
    for layer, module in packed.items():
        np.testing.assert_allclose(module.weight.double().numpy(), expected[layer], rtol=1e-6, atol=1e-9)
    plain = load_model(world / "source", "float32")
    for layer, weight in expected.items():
        plain.get_submodule(layer).weight.data = torch.from_numpy(weight).float()
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_an_adapter_trains_on_a_base_of_another_tool_and_merges_onto_the_plain_one(world, tmp_path, method, capsys):
    write_foreign(world / "source", tmp_path / "coded", method)
    folder = tmp_path / "world"
    folder.mkdir()
    for link, target in (("packed", world / "packed"), ("valid", world / "valid"), ("base", tmp_path / "coded")):
        (folder / link).symlink_to(target)
    run = trained(folder, config("lora", rank=4), tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    tuned = peft.PeftModel.from_pretrained(load_model(tmp_path / "coded", "float32"), str(run)).eval()
    assert loss_of(tuned, world / "valid") == pytest.approx(valid, abs=2e-6)
    with pytest.raises(ArtifactError, match=r"trained on the model .* --onto"):
        merge(run, world / "source", tmp_path / "no")
    capsys.readouterr()
    ports = {"parts": [str(run)], "onto": [str(world / "source")]}
    run_stage(MERGE, Merge(parity="off"), ports, tmp_path / "merged", Options(threads=1))
    assert "the result differs from base and adapter" in capsys.readouterr().err
    on_source = peft.PeftModel.from_pretrained(load(world / "source"), str(run)).eval()
    assert loss_of(load(tmp_path / "merged"), world / "valid") == pytest.approx(
        loss_of(on_source, world / "valid"), abs=2e-5
    )
    with pytest.raises(ConfigError, match="its weights are quantized"):
        ports["onto"] = [str(tmp_path / "coded")]
        run_stage(MERGE, Merge(parity="off"), ports, tmp_path / "never", Options(threads=1))


def test_a_damaged_layer_is_named(world, tmp_path):
    write_foreign(world / "source", tmp_path / "base", "gptq")
    with open_weights(tmp_path / "base") as weights:
        tensors = {name: read_tensor(weights, name).clone() for name in weights.where}
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.scales"] = tensors[f"{name}.scales"][:, :-8].contiguous()
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    with pytest.raises(ArtifactError, match=f"{name} has .* words and scales for .* they do not fit") as error:
        load_model(tmp_path / "base", "float32")
    assert error.value.code == 65


@pytest.mark.parametrize(
    ("tuner", "options", "message"),
    [
        ("full", {}, "is quantized, and --tuner full trains the weights themselves"),
        ("lora", {"init": "pissa"}, "is quantized, and --lora.init pissa changes the weights"),
        ("lora", {"quant": "nf4"}, "--quant nf4: .* is quantized already"),
    ],
)
def test_what_would_change_the_base_is_refused(world, tmp_path, tuner, options, message):
    folder = with_base(world, tmp_path, "w4")
    ports = {"packed": [str(folder / "packed")], "model": [str(folder / "base")]}
    with pytest.raises(ConfigError, match=message) as error:
        run_stage(STAGE, config(tuner, **options), ports, tmp_path / "run", Options(threads=1))
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("method", "package"),
    [("aqlm", "aqlm"), ("hqq", "does not load"), ("quanto", "does not save"), ("sparse", "not known here")],
)
def test_a_package_that_is_missing_is_named(world, tmp_path, method, package):
    shutil.copytree(world / "source", tmp_path / "other")
    config_json = json.loads((tmp_path / "other" / "config.json").read_text())
    config_json["quantization_config"] = {"quant_method": method}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config_json))
    with pytest.raises(ConfigError, match=f"quantized by .*{package}"):
        load_model(tmp_path / "other", "float32")


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_bitsandbytes_quantizes_while_it_loads(world, tmp_path, quant):
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    cfg = config("lora", rank=4, quant=quant)
    run = trained(with_base(world, tmp_path, "source"), cfg, tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    tuned = peft.PeftModel.from_pretrained(load_model(world / "source", "float32", quant=quant), str(run)).eval()
    assert loss_of(tuned, world / "valid") == pytest.approx(valid, abs=1e-4)
    assert (
        abs(loss_of(peft.PeftModel.from_pretrained(load(world / "source"), str(run)), world / "valid") - valid) > 1e-4
    )


@pytest.mark.parametrize("rslora", [False, True])
def test_loftq_begins_with_the_best_of_its_rank_for_what_the_codes_lost(world, rslora):
    model = load_model(world / "w4", "float32")
    lora = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"], use_rslora=rslora)
    net = peft.get_peft_model(model, lora)
    take_up_loss(net, world / "source", torch.float32)
    plain = load_model(world / "source", "float32")
    for name, module in net.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            lost = plain.get_submodule(name).weight.double() - module.get_base_layer().weight.double()
            left = lost - module.get_delta_weight("default").double()
            rest = torch.linalg.svdvals(lost)[4:]
            assert float(left.norm()) == pytest.approx(float(rest.norm()), rel=1e-4)
            assert float(left.norm()) < 0.99 * float(lost.norm())


def test_loftq_goes_with_quant(world, tmp_path):
    for name, options in (("w4", {}), ("source", {})):
        with pytest.raises(ConfigError, match=r"--lora.init loftq: .* it needs --quant"):
            folder = tmp_path / name
            folder.mkdir()
            ports = {"packed": [str(world / "packed")], "model": [str(world / name)]}
            run_stage(STAGE, config("lora", init="loftq", **options), ports, folder / "run", Options(threads=1))


def test_loftq_trains_on_a_base_that_bitsandbytes_quantizes(world, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    firsts = {}
    for init in ("default", "loftq"):
        folder = tmp_path / init
        folder.mkdir()
        run = trained(with_base(world, folder, "source"), config("lora", rank=16, quant="nf4", init=init), folder / "r")
        firsts[init], last, valid = losses(run)
        assert last < firsts[init]
        tuned = peft.PeftModel.from_pretrained(load_model(world / "source", "float32", quant="nf4"), str(run)).eval()
        assert loss_of(tuned, world / "valid") == pytest.approx(valid, abs=1e-4)
    with pytest.raises(ConfigError, match="LoftQ, which began with what quantizing took"):
        merge(run, world / "source", tmp_path / "merged")


def test_gradients_through_nf4_after_an_evaluation(world):
    """bitsandbytes repacks weights for inference in the first pass without gradients, and never goes back."""
    bnb = pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    tuner = Lora(rank=4, targets=["q_proj", "down_proj"])
    nets = [
        tuner.build().start(Start(world / "source", functools.partial(load_model, quant=quant), torch.float32, 0, None))
        for quant in ("nf4", "none")
    ]
    for coded, plain in zip(nets[0].modules(), nets[1].modules(), strict=True):
        if isinstance(coded, bnb.nn.Linear4bit):
            plain.weight.data = bnb.functional.dequantize_4bit(coded.weight.data, coded.weight.quant_state).float()
    ids = torch.arange(3, 20)[None]
    for net in nets:
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.01)
        net.eval()
        with torch.no_grad():
            net(ids)
        net.train().get_base_model()(ids).logits.square().mean().backward()
    for (name, ours), (_, theirs) in zip(nets[0].named_parameters(), nets[1].named_parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
