"""What a run makes, and what it refuses."""

import json
import math
import re
import signal
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
import token_tables  # noqa: E402
import warm  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact, verify_files  # noqa: E402
from postmill.stages.options import changed as changed_config  # noqa: E402
from postmill.stages.options import make, options, short_names  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.spec import LAST_BITS  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402

QUICK = make(Train, lr=2e-2, bins_per_step=4, steps=4, save_every=0, tuner=Lora(rank=4))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    base = tiny_model.write_model(folder / "base", dtype="bfloat16")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(26, seed=3))
    return folder


def train(world, target, cfg=QUICK, **ports):
    given = {"packed": [str(world / "packed")], "model": [str(world / "base")]} | ports
    return run_stage(STAGE, cfg, given, target, Options(threads=1))


def changed(cfg=QUICK, **fields):
    return changed_config(cfg, **fields)


def test_adapter_loads_with_peft_and_lowers_the_loss(world, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    cfg = changed(steps=6, lr=5e-2, schedule="constant", bins_per_step=9)
    outcome = train(world, tmp_path / "run", cfg)
    run = tmp_path / "run"
    artifact = load_artifact(run, ("adapter",))
    assert verify_files(artifact) == []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert outcome.manifest.metrics["trained_tokens"] == sum(line["trained_tokens"] for line in lines)
    assert artifact.manifest.digests["base"] == artifact.manifest.inputs[1].digest
    assert json.loads((run / "training.json").read_text())["stop_ids"] == [2]
    config = json.loads((run / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    base = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    before = base(ids).logits
    tuned = PeftModel.from_pretrained(base, run)
    assert float((tuned(ids).logits - before).abs().max()) > 0.05
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (run / name).read_bytes() == (world / "base" / name).read_bytes()
    assert "polyline" in (run / "loss.svg").read_text()


def test_full_model_keeps_its_dtype_and_learns_its_stop_id(world, tmp_path):
    from transformers import AutoModelForCausalLM

    train(world, tmp_path / "run", changed(tuner="full"))
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    before = load_file(world / "base" / "model.safetensors")
    assert tensors.keys() == before.keys()
    assert all(t.dtype == torch.bfloat16 for t in tensors.values())
    assert sum(not torch.equal(tensors[name], before[name]) for name in tensors) > len(tensors) / 2
    assert json.loads((tmp_path / "run" / "generation_config.json").read_text())["eos_token_id"] == [2]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.config.tie_word_embeddings
    train(world, tmp_path / "wide", changed(tuner="full", save_dtype="float32"))
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert all(torch.equal(wide[name].bfloat16(), tensor) for name, tensor in tensors.items())


def test_first_adamw_step_is_the_textbooks(world, tmp_path):
    """After one update from zero moments every weight has moved by lr * g / (|g| + eps), and matrices have decayed."""
    cfg = changed(tuner="full", steps=1, schedule="constant", warmup=0, save_dtype="float32", weight_decay=0.5, lr=1e-2)
    train(world, tmp_path / "run", cfg)
    after, before = (load_file(p / "model.safetensors") for p in (tmp_path / "run", world / "base"))
    for name, tensor in after.items():
        old = before[name].float()
        decayed = old * (1 - 1e-2 * 0.5) if old.ndim >= 2 else old
        moved = (tensor - decayed).abs()
        assert float(moved.max()) <= 1e-2 * (1 + 1e-4), name
        assert float((moved > 0.9e-2).float().mean()) > 0.5 or name.endswith("embed_tokens.weight"), name


def test_head_trained_whole_beside_the_adapter(world, tmp_path):
    base = tiny_model.write_model(tmp_path / "untied", tied=False)
    packed = tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(12))
    cfg = changed(tuner=Lora(rank=2, targets=["q_proj"], modules_to_save=["lm_head"]))
    train(world, tmp_path / "run", cfg, packed=[str(packed)], model=[str(base)])
    tensors = load_file(tmp_path / "run" / "adapter_model.safetensors")
    head = next(t for name, t in tensors.items() if "lm_head" in name)
    assert not torch.equal(head, load_file(base / "model.safetensors")["lm_head.weight"])


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        ({"lr": 0.0}, "--lr 0: nothing would be learned", 2),
        ({"tuner": Lora(targets=["nope"])}, r"--lora.targets nope: no such module; linear ones are down_proj", 2),
        ({"tuner": Lora(targets=["lm_head"])}, "the output head takes no adapter", 2),
        ({"attention": "flash"}, "--attention flash: needs flash-attn", 2),
        ({"liger": True}, "--liger: its kernels need a CUDA GPU, the device is cpu; leave it out", 2),
    ],
)
def test_options_that_cannot_work_are_refused(world, tmp_path, change, message, code):
    with pytest.raises(ConfigError, match=message) as error:
        train(world, tmp_path / "run", changed(**change))
    assert error.value.code == code
    assert not (tmp_path / "run").exists()


def test_data_that_does_not_fit_the_model_is_refused(world, tmp_path):
    other = tiny_model.write_model(tmp_path / "other", vocab_size=40)
    with pytest.raises(ArtifactError, match=r"token id \d+, .* has a vocabulary of 40") as error:
        train(world, tmp_path / "run", model=[str(other)])
    assert error.value.code == 78
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match="its tokens were made with tokenizer blake3:") as error:
        train(world, tmp_path / "run", model=[str(other)])
    assert error.value.code == 78


def test_nothing_to_train_on_is_refused(world, tmp_path):
    rows = [token_tables.row([3, 4, 5], [], label=1.0) for _ in range(3)]
    packed = tiny_model.write_packed(tmp_path / "packed", world / "base", rows)
    with pytest.raises(ArtifactError, match="with 0 trained tokens") as error:
        train(world, tmp_path / "run", packed=[str(packed)])
    assert error.value.code == 65


def test_weights_that_cancel_are_refused(world, tmp_path):
    rows = [token_tables.row([3, 4, 5, 6], [(1, 2, 1.0), (2, 3, -1.0)]) for _ in range(3)]
    packed = tiny_model.write_packed(tmp_path / "packed", world / "base", rows)
    with pytest.raises(ConfigError, match="step 1: the sum of weights is 0"):
        train(world, tmp_path / "run", changed(normalize="weights"), packed=[str(packed)])


def test_a_step_that_is_not_finite_is_not_applied(world, tmp_path):
    rows = tiny_model.make_rows(26, seed=3)
    rows[7]["spans"] = [{"start": 1, "end": 3, "weight": math.inf}]
    rows[7]["weight_sum"] = math.inf
    rows[7]["trained_tokens"] = 2
    packed = tiny_model.write_packed(tmp_path / "packed", world / "base", rows)
    cfg = changed(bins_per_step=1, steps=9, save_every=1, keep_last=9)
    with pytest.raises(StageError, match="not finite, so the step was not applied") as error:
        train(world, tmp_path / "run", cfg, packed=[str(packed)])
    assert error.value.code == 79
    work = tmp_path / "run.checkpoints"
    report = json.loads(next(work.glob("diverged-step-*.json")).read_text())
    poisoned = token_tables.to_batches(rows, 100)[0]["row_id"][7].as_py().hex()
    assert poisoned in [row for rows in report["rows"].values() for row in rows]
    saved = sorted(work.glob("step-*"))
    assert len(saved) == report["step"] - 1
    for path in saved:
        for file in path.glob("*.safetensors"):
            assert all(bool(torch.isfinite(t).all()) for t in load_file(file).values())
    if saved:  # the weights are those of the last good step
        lines = (saved[-1] / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == report["step"] - 1


def test_weights_that_are_not_finite_are_never_saved(world, tmp_path):
    from postmill.stages.train.save import check_saved, save_tensors

    for value in (math.nan, math.inf, -math.inf):
        save_tensors({"a": torch.tensor([1.0, value])}, tmp_path / "x.safetensors")
        with pytest.raises(StageError, match="a is not finite") as error:
            check_saved(tmp_path)
        assert error.value.code == 79
    for tensor, message in ((torch.zeros(3), "all weights are zero"), (torch.zeros(0, 3), "a is empty")):
        save_tensors({"a": tensor}, tmp_path / "x.safetensors")
        with pytest.raises(StageError, match=message):
            check_saved(tmp_path)


def test_out_of_memory_names_the_step_and_the_ways_out():
    from postmill.io.packed import Bin
    from postmill.stages.shared.batch import collate
    from postmill.stages.train.blocks import out_of_memory
    from postmill.stages.train.plan import Step

    step = Step(3, 0, np.zeros((1, 1), np.int64), {"tokens": 1.0}, 1, 1)
    ids, weights = np.zeros(99, np.int32), np.zeros(99, np.float32)
    batch = collate([Bin(ids, ids, np.array([0, 99], np.int32), weights, np.zeros(1, np.int64))])
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    error = out_of_memory(caught.value, step, batch)
    assert isinstance(error, StageError)
    assert "step 4: out of memory on 99 tokens" in str(error)
    # what the run may go on with is what does not make it another run
    _, same_run, another = str(error).split(";")
    known = short_names(options(Train))
    found = re.findall(r"--([a-z-]+)", same_run)
    assert found == ["gradient-checkpointing", "micro-bins"]
    effects = {options(Train)[known[name.replace("-", "_")]].effect for name in found}
    assert effects == {LAST_BITS}
    assert "--tuner lora" in another
    other = RuntimeError("something else")
    assert out_of_memory(other, step, batch) is other


def test_stop_ids_are_special_tokens_that_are_trained(world):
    from postmill.io.packed import PackedReader
    from postmill.stages.train.save import choose_stop_ids
    from postmill.stages.train.survey import closing_ids

    counts = closing_ids(PackedReader(world / "packed"))
    assert counts == {2: 26}
    assert choose_stop_ids({2: 5, 9: 50}, world / "base") == [2]


def test_the_command_stops_safely(world, tmp_path):
    """A real process: SIGTERM gives 75 and a checkpoint of the step that was under way, and prints no path."""
    argv = ["train", world / "packed", "-m", world / "base", "-o", tmp_path / "run", "--tuner", "full"]
    child = warm.start(*argv, "--steps", "4000", "--threads", "1", "--save-every", "0")
    work = tmp_path / "run.checkpoints"
    end = time.monotonic() + 200
    while time.monotonic() < end and child.poll() is None:
        if (work / "metrics.jsonl").exists() and (work / "metrics.jsonl").stat().st_size:
            break
        time.sleep(warm.POLL_S)
    child.send_signal(signal.SIGTERM)
    ended = child.end()
    assert ended.returncode == 75, ended.stderr
    assert "stopped by SIGTERM; checkpoint at step" in ended.stderr
    assert ended.stdout == ""
    steps = [p.name for p in work.glob("step-*")]
    assert len(steps) == 1
    load_artifact(work / steps[0], ("checkpoint",))
