"""Liger's modules compute what the plain ones do, under the same names. See liger_interpreted.py for the cases."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")

import tiny_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from postmill.io.errors import ConfigError  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.shared import attention  # noqa: E402
from postmill.stages.train import liger  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.tuners.full import Full  # noqa: E402

NATIVE = "native module not built"


@pytest.fixture(scope="module")
def interpreted():
    pytest.importorskip("triton")
    path = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    script = Path(__file__).parent / "liger_interpreted.py"
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(json.loads(line) for line in run.stdout.splitlines())


@pytest.mark.timeout(900)  # 20 s of a free core
def test_loss_and_gradients_are_those_of_the_plain_model(interpreted):
    assert len(interpreted) == 9
    for case, found in interpreted.items():
        # A gradient is the small difference of large terms: float32 leaves 1.4e-5 of the largest entry in the worst.
        loss, gradient = (2e-3, 3e-2) if case.startswith("float16") else (1e-6, 5e-5)
        assert found["loss"] <= loss, (case, found)
        assert 0 < found["gradient"] <= gradient, (case, found)
        assert found["gradients"] >= 20, (case, found)


@pytest.fixture
def base(tmp_path):
    attention.choose("per-row", torch.device("cpu"), torch.float32)
    return tiny_model.write_model(tmp_path / "base")


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_names_and_what_is_saved_do_not_change(base, tmp_path, tuner):
    options = make(Train, tuner=tuner).tuner
    plain, fused = (tiny_model.start(options, base, attention.ROWS, liger=liger) for liger in (False, True))
    kinds = {type(m) for m in fused.modules()}
    assert {liger.Norm, liger.Mlp, liger.Attention} <= kinds
    assert plain.state_dict().keys() == fused.state_dict().keys()
    trained = [{name for name, p in model.named_parameters() if p.requires_grad} for model in (plain, fused)]
    assert trained[0] == trained[1]
    for name, model in (("plain", plain), ("fused", fused)):
        model.save_pretrained(tmp_path / name)
    weights = "model.safetensors" if tuner == "full" else "adapter_model.safetensors"
    first, second = (load_file(tmp_path / name / weights) for name in ("plain", "fused"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    config = "config.json" if tuner == "full" else "adapter_config.json"
    first, second = (json.loads((tmp_path / name / config).read_text()) for name in ("plain", "fused"))
    assert first == second


def test_no_class_of_transformers_is_touched(base):
    kind = transformers.models.llama.modeling_llama
    before = {name: dict(vars(getattr(kind, name))) for name in ("LlamaRMSNorm", "LlamaMLP", "LlamaAttention")}
    tiny_model.start(Full(), base, attention.ROWS, liger=True)
    assert all(dict(vars(getattr(kind, name))) == was for name, was in before.items())
    plain = tiny_model.start(Full(), base, attention.ROWS)
    assert not {liger.Norm, liger.Mlp, liger.Attention} & {type(m) for m in plain.modules()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gemma2"}, "the model is a gemma2, expected llama, mistral, qwen2, qwen3; leave it out"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act is gelu, expected silu; leave it out"),
    ],
)
def test_models_whose_semantics_differ_are_refused(config, message):
    with pytest.raises(ConfigError, match=message) as error:
        liger.check(config, torch.device("cuda"))
    assert error.value.code == 2
    liger.check({"model_type": "llama"}, torch.device("cuda"))


@pytest.mark.gpu
def test_one_step_with_and_without_on_a_gpu(base, tmp_path):
    pytest.importorskip("postmill._native", reason=NATIVE)
    packed = tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(12))
    lines = []
    for name, wanted in (("plain", False), ("fused", True)):
        cfg = make(Train, tuner="full", lr=1e-3, steps=1, bins_per_step=4, save_every=0, dtype="float32", liger=wanted)
        run_stage(STAGE, cfg, {"packed": [str(packed)], "model": [str(base)]}, tmp_path / name, Options(threads=1))
        lines.append(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]))
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-5)
    assert lines[0]["grad_norm"] == pytest.approx(lines[1]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_ligers_kernels_compile_for_gpus_that_are_not_here(capability):
    """The five that our modules call, in bfloat16, at the sizes of a model of 0.6B."""
    triton = pytest.importorskip("triton")
    from liger_kernel.ops import rms_norm, rope, swiglu
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    norm = {"casting_mode": 0, "elementwise_affine": True, "BLOCK_SIZE": 1024}
    rotary = {"bs": 1, "cos_bs": 1, "n_qh": 16, "n_kh": 8, "hd": 128, "rd": 128, "BLOCK_SIZE": 16}
    rotary |= {"pad_n_qh": 16, "pad_n_kh": 8, "pad_hd": 128, "pad_rd": 128}
    gate = {"n_cols": 3072, "BLOCK_SIZE": 4096}
    launches = [
        (rms_norm._rms_norm_forward_kernel, norm),
        (rms_norm._rms_norm_backward_kernel, norm | {"X_dtype": triton.language.bfloat16, "COMPUTE_DW": True}),
        (rope._triton_rope, rotary | {"BACKWARD_PASS": False}),
        (rope._triton_rope, rotary | {"BACKWARD_PASS": True}),
        (swiglu._swiglu_forward_kernel, gate),
        (swiglu._swiglu_backward_kernel, gate),
    ]
    kinds = {"RSTD_ptr": "*fp32", "dW_ptr": "*fp32", "cos": "*bf16", "sin": "*bf16"}
    kinds |= dict.fromkeys(("eps", "offset", "gate_multiplier"), "fp32")
    for kernel, constants in launches:
        signature = {
            name: "constexpr" if name in constants else kinds.get(name, "*bf16" if name.endswith("_ptr") else "i32")
            for name in kernel.arg_names
        }
        source = ASTSource(kernel, signature, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        assert compiled.asm["cubin"], kernel.__name__
