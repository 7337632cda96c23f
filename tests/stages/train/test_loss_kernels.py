"""Weighted SFT on real tokens has the same loss and gradients with every backend of the loss head."""

import json
import os
import subprocess
import sys
from pathlib import Path

import assets
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402

CHATS = [
    ("Name a colour of the sky.", "Blue, most days; red in the evening.", 0.3),
    ("Add 17 and 25.", "17 + 25 = 42", 3.0),
    ("Who wrote Hamlet?", "William Shakespeare wrote it about 1600.", 1.0),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, request):
    """A tiny model with SmolLM2's tokenizer or one of bytes, and weighted chats packed for it by the real commands."""
    folder = tmp_path_factory.mktemp("kernels")
    if request.param == "smollm2":
        tokenizer, vocab_size, row_tokens = assets.smollm2(), 49_152, 64
        if tokenizer is None:
            pytest.skip("SmolLM2 cannot be fetched here")
    else:
        tokenizer, vocab_size, row_tokens = write_tokenizer(folder / "tokenizer"), 263, 128
    base = tiny_model.write_model(folder / "base", hidden_size=16, vocab_size=vocab_size, num_hidden_layers=1)
    (base / "chat_template.jinja").unlink()
    for file in (*tokenizer.glob("tokenizer*.json"), *tokenizer.glob("chat_template.jinja")):
        (base / file.name).write_bytes(file.read_bytes())
    with (folder / "chats.jsonl").open("w") as file:
        for question, answer, weight in CHATS:
            user = {"role": "user", "content": question}
            reply = {"role": "assistant", "content": answer, "loss_scale": weight}
            file.write(json.dumps({"messages": [user, reply]}) + "\n")
    postmill("tokenize", folder / "chats.jsonl", "-m", base, "-o", folder / "tokens")
    postmill("pack", folder / "tokens", "--row-tokens", str(row_tokens), "-o", folder / "packed")
    return folder


def postmill(*argv):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "postmill.cli.main", *map(str, argv), "--quiet"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def step(world, backend):
    path = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    script, out = Path(__file__).parent / "step_with_backend.py", world / f"{backend}.safetensors"
    command = [sys.executable, script, world / "packed", world / "base", backend, out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(out)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("world", "backend"),
    [
        ("smollm2", "cpp"),
        ("bytes", "triton"),
        pytest.param("smollm2", "triton", marks=pytest.mark.slow),  # minutes of the interpreter
    ],
    indirect=["world"],
)
def test_one_step_is_the_same_with_every_backend(world, backend):
    if backend == "cpp":
        pytest.importorskip("postmill._C", reason="C++ kernels not built")
    else:
        pytest.importorskip("triton")
    expected, found = step(world, "reference"), step(world, backend)
    assert found.keys() == expected.keys()
    assert float(expected["loss"]) > 0
    for name, want in expected.items():
        gap, size = float((found[name] - want).abs().max()), float(want.abs().max())
        assert gap <= 2e-6 * size, (name, gap, size)


def test_a_wrong_kernel_is_found_before_the_first_step(tmp_path, monkeypatch, capfd):
    """`auto` goes on in plain torch to the same weights; a kernel that was asked for is an error."""
    pytest.importorskip("postmill._C", reason="C++ kernels not built")
    from postmill.io.errors import StageError
    from postmill.kernels.loss_scale_ce import cpp
    from postmill.stages.options import make
    from postmill.stages.runner import Options, run_stage
    from postmill.stages.train.config import STAGE, Train

    base = tiny_model.write_model(tmp_path / "base")
    ports = {"packed": [str(tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(12)))]}
    ports["model"] = [str(base)]

    def train(kernel, name):
        cfg = make(Train, tuner="full", lr=1e-3, steps=2, bins_per_step=2, save_every=0, loss_kernel=kernel)
        run_stage(STAGE, cfg, ports, tmp_path / name, Options(threads=1))
        return (tmp_path / name / "model.safetensors").read_bytes()

    expected = train("reference", "reference")
    train("cpp", "right")
    assert "differs from the reference" not in capfd.readouterr().err
    right = cpp.loss_coefficients

    def wrong(*arguments):
        coefficients = right(*arguments)
        return coefficients._replace(b_T=coefficients.b_T * 1.01)

    monkeypatch.setattr(cpp, "loss_coefficients", wrong)
    assert train("auto", "auto") == expected
    said = capfd.readouterr().err
    assert "train: warning: loss_scale_ce: cpp differs from the reference by" in said
    assert "the loss is computed in plain torch, which is slower" in said
    with pytest.raises(StageError, match=r"--loss-kernel cpp: .* pass --loss-kernel reference, and report this"):
        train("cpp", "wrong")
    assert not (tmp_path / "wrong").exists()
