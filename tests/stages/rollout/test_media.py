"""Prompts with pictures: samples are what transformers would say, rows keep their pictures, and learning sees them."""

import json
from pathlib import Path
from typing import Any

import media_models
import numpy as np
import pyarrow as pa
import pytest
import tiny_vlm
import torch

from postmill.io.errors import ArtifactError, ConfigError
from postmill.io.packed import PackedReader
from postmill.io.rollouts import ROLLOUTS
from postmill.io.schemas import ROLLOUTS_V1, TOKENS_V1
from postmill.io.table import TableReader
from postmill.stages.options import make
from postmill.stages.rollout.config import STAGE, Rollout
from postmill.stages.runner import Options, run_stage

pytest.importorskip("torchvision")
pytest.importorskip("num2words")
SAMPLES = 3


def ask(folder: Path, out: str, **options: Any) -> list[dict[str, Any]]:
    given = {"prompts": [str(folder / "prompts")], "policy": [str(folder / "model")]}
    cfg = make(Rollout, **{"samples": SAMPLES, "max_new_tokens": 4} | options)
    run_stage(STAGE, cfg, given, folder / out, Options(threads=1))
    return pa.Table.from_batches(list(TableReader(folder / out / ROLLOUTS, ROLLOUTS_V1))).to_pylist()


def write_prompts(folder: Path, name: str) -> Any:
    """Two pictures of one size, so that two prompts have the same ids, and a prompt of text."""
    from postmill.stages.tokenize.config import STAGE as TOKENIZE
    from postmill.stages.tokenize.config import Tokenize

    processor = tiny_vlm.write_model(folder / "model", name)
    rows: list[dict[str, Any]] = []
    for index in range(2):
        media_models.save_picture(folder / f"{index}.png", 60, 90, seed=index)
        rows.append({"query": "<image>what is it?", "images": [f"{index}.png"], "solution": "x"})
    rows.append({"query": "hello there", "solution": "x"})
    media_models.write_lines(folder / "asks.jsonl", rows)
    given = {"data": [str(folder / "asks.jsonl")], "model": [str(folder / "model")]}
    run_stage(TOKENIZE, make(Tokenize, for_="prompt"), given, folder / "prompts", Options())
    return processor


@pytest.fixture(
    scope="module", params=["qwen2_5_vl", "qwen2_5_omni", "llava", "gemma3", "paligemma", "llava_onevision", "llama4"]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    processor = write_prompts(folder, request.param)
    return {"folder": folder, "name": request.param, "processor": processor, "rows": ask(folder, "rollouts")}


def own_logp(case: dict[str, Any], row: dict[str, Any]) -> torch.Tensor:
    """Log-probs of the sampled tokens by transformers' own pass over the whole row with the processor's pixels."""
    from PIL import Image
    from transformers import AutoModelForMultimodalLM

    net = AutoModelForMultimodalLM.from_pretrained(case["folder"] / "model", dtype=torch.float32).eval()
    ids, start = torch.tensor([row["input_ids"]]), row["prompt_length"]
    inputs: dict[str, Any] = {}
    if row["media"]:
        image = Image.open(case["folder"] / row["media"][0]["reference"]).convert("RGB")
        inputs = dict(case["processor"].image_processor(images=[image], return_tensors="pt"))
        for name in ("num_patches", "num_crops"):
            inputs.pop(name, None)
    tok, name = case["processor"].tokenizer, case["name"]
    pads = (ids == (tok.image_token_id if name == "gemma3" else case["processor"].image_token_id)).long()
    if name == "qwen2_5_vl" and row["media"]:
        inputs["mm_token_type_ids"] = pads
    if name == "qwen2_5_omni":
        inputs["attention_mask"] = torch.ones_like(ids)
    if name == "llama4" and row["media"]:
        inputs["pixel_values"] = inputs["pixel_values"].float()
    if name == "gemma3":
        inputs["token_type_ids"] = pads
    if name == "paligemma":
        inputs["token_type_ids"] = (torch.arange(ids.shape[1]) >= start).long()[None]
    if name == "llava_onevision" and row["media"]:
        inputs["batch_num_images"] = torch.tensor([1])
    with torch.no_grad():
        logits = net(input_ids=ids, use_cache=False, **inputs).logits[0]
    logp = logits[:-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    return logp[start - 1 :]


def test_samples_have_the_log_probs_of_transformers(case: dict[str, Any]) -> None:
    assert len(case["rows"]) == 3 * SAMPLES
    for row in case["rows"]:
        assert len(row["media"]) == (row["line"] != 3)
        assert np.abs(np.array(row["logp"]) - own_logp(case, row).numpy()).max() < 1e-5
    first, second = case["rows"][0], case["rows"][SAMPLES]
    length = first["prompt_length"]
    assert first["input_ids"][:length] == second["input_ids"][:length]
    assert first["media"][0]["digest"] != second["media"][0]["digest"]


def test_a_prompt_is_read_once_and_answered_as_alone(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from postmill.stages.shared.media.pixels import Pixels

    read: list[int] = []
    made = Pixels.of_prompt
    monkeypatch.setattr(Pixels, "of_prompt", lambda *given: read.append(1) or made(*given))
    alone = ask(case["folder"], "alone", batch_size=1)
    num_read = 3 if case["name"] == "paligemma" else 2
    assert len(read) == num_read * SAMPLES
    read.clear()
    together = ask(case["folder"], "together", batch_size=64)
    assert len(read) == num_read
    assert [row["input_ids"] for row in alone] == [row["input_ids"] for row in together]


def test_learning_sees_the_pictures(case: dict[str, Any]) -> None:
    """Log-probs of the policy's first pass are those that were sampled with, so learning has seen the pictures."""
    from postmill.stages.pack.config import STAGE as PACK
    from postmill.stages.pack.config import Pack
    from postmill.stages.train.config import STAGE as TRAIN
    from postmill.stages.train.config import Train

    folder = case["folder"]
    write_rewards(folder)
    packed = folder / "packed"
    run_stage(PACK, Pack(row_tokens=1024), {"tokens": [str(folder / "rollouts")]}, packed, Options())
    pictures = PackedReader(packed).token_rows.pictures(np.arange(3 * SAMPLES))
    assert [len(row) for row in pictures] == [1] * (2 * SAMPLES) + [0] * SAMPLES
    cfg = make(Train, objective="rl", steps=1, bins_per_step=1, lr=1e-3, warmup=0.0)
    given = {"packed": [str(packed)], "model": [str(folder / "model")], "rewards": [str(folder / "rewards")]}
    run_stage(TRAIN, cfg, given, folder / "run", Options())
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert abs(metrics[0]["mismatch"]) < 1e-5
    assert metrics[0]["grad_norm"] > 0.1


def test_picked_samples_keep_their_pictures(case: dict[str, Any]) -> None:
    from postmill.stages.reward.config import STAGE as REWARD
    from postmill.stages.reward.config import Reward

    folder = case["folder"]
    write_rewards(folder)
    given = {"rollouts": [str(folder / "rollouts")], "functions": [f"{folder / 'mine.py'}:odd"]}
    run_stage(REWARD, make(Reward, emit="pairs"), given, folder / "pairs", Options())
    table = [row for batch in TableReader(folder / "pairs" / "tokens.arrow", TOKENS_V1) for row in batch.to_pylist()]
    assert [(row["side"], len(row["media"])) for row in table] == [(0, 1), (1, 1)] * 2 + [(0, 0), (1, 0)]
    by_id = {row["row_id"]: row["media"] for row in case["rows"]}
    assert all(row["media"] == by_id[row["row_id"]] for row in table)


def test_a_picture_that_changed_is_an_error_and_servers_get_none(case: dict[str, Any]) -> None:
    if case["name"] != "llava":
        pytest.skip("one is enough")
    with pytest.raises(ConfigError, match="not sent to servers"):
        ask(case["folder"], "served", url="http://127.0.0.1:1")
    file = case["folder"] / "1.png"
    before = file.read_bytes()
    try:
        media_models.save_picture(file, 60, 90, seed=5)
        with pytest.raises(ArtifactError, match="another picture than when the rows were made"):
            ask(case["folder"], "changed", seed=1)
    finally:
        file.write_bytes(before)


def write_rewards(folder: Path) -> None:
    """Half of the samples of each prompt are good."""
    from postmill.stages.reward.config import STAGE as REWARD
    from postmill.stages.reward.config import Reward

    (folder / "mine.py").write_text("def odd(row):\n    return row.sample % 2\n")
    given = {"rollouts": [str(folder / "rollouts")], "functions": [f"{folder / 'mine.py'}:odd"]}
    run_stage(REWARD, make(Reward), given, folder / "rewards", Options())
