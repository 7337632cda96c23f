"""Embeddings and heads trained beside an adapter, tied or not: the files compute what training computed.

The oracle is PEFT: the loss that the last validation gave must be what PEFT's model of the saved adapter gives on
the same rows, and what the merged model gives.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402

from postmill.io.packed import PackedReader  # noqa: E402
from postmill.stages.merge.config import STAGE as MERGE  # noqa: E402
from postmill.stages.merge.config import Merge  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402

CASES = {
    "head": Lora(rank=2, targets=["q_proj"], modules_to_save=["lm_head"]),
    "embedding": Lora(rank=2, targets=["q_proj"], modules_to_save=["embed_tokens"]),
    "both": Lora(rank=2, targets=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "adapter on the embedding": Lora(rank=2, targets=["q_proj", "embed_tokens"]),
    "norms": Lora(rank=2, targets=["q_proj"], modules_to_save=["norm"]),
    "rank-stabilised DoRA": Lora(rank=2, targets=["q_proj", "down_proj"], dora=True, rslora=True),
}


def loss_of(model, packed):
    """Mean of weight * nll over trained tokens, each row alone through the model's own logits."""
    reader, total, count = PackedReader(packed), 0.0, 0
    with torch.no_grad():
        for index in range(len(reader)):
            found = reader.bin(index)
            for start, end in zip(found.cu_seqlens, found.cu_seqlens[1:], strict=False):
                ids = torch.from_numpy(found.input_ids[start:end].astype(np.int64))
                logp = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
                weights = torch.from_numpy(found.weights[start + 1 : end]).double()
                total -= float((logp.gather(-1, ids[1:, None])[:, 0] * weights).sum())
                count += int((weights != 0).sum())
    return total / count


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_saved_and_merged_compute_what_training_computed(tmp_path, name, tied):
    torch.set_num_threads(1)
    base = tiny_model.write_model(tmp_path / "base", tied=tied)
    packed = tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(12, seed=3))
    given = {"packed": [str(packed)], "model": [str(base)], "valid": [str(packed)]}
    cfg = make(Train, lr=5e-2, steps=3, bins_per_step=2, schedule="constant", warmup=0, tuner=CASES[name])
    outcome = run_stage(STAGE, cfg, given, tmp_path / "run", Options(threads=1))
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    before = loss_of(plain, packed)
    trained = outcome.manifest.metrics["valid_loss"]
    assert abs(trained - before) > 0.02
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "run").eval()
    assert loss_of(adapted, packed) == pytest.approx(trained, rel=1e-5)
    run_stage(
        MERGE,
        Merge(parity="off"),
        {"parts": [str(tmp_path / "run")], "model": [str(base)]},
        tmp_path / "out",
        Options(),
    )
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loss_of(merged, packed) == pytest.approx(trained, rel=1e-5)
