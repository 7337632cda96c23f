"""Preferences about pictures: loss and gradient are TRL's on the same rows, and a picture passes the tower once."""

import json
from pathlib import Path
from typing import Any

import media_models
import pytest
import tiny_vlm
import torch

from postmill.io.packed import PackedReader
from postmill.stages.options import make
from postmill.stages.pack.config import STAGE as PACK
from postmill.stages.pack.config import Pack
from postmill.stages.runner import Options, run_stage
from postmill.stages.score.config import STAGE as SCORE
from postmill.stages.score.config import Score
from postmill.stages.tokenize.config import STAGE as TOKENIZE
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.train.config import STAGE, Train

pytest.importorskip("torchvision")
pytest.importorskip("trl", reason="the oracle")
datasets = pytest.importorskip("datasets")
ANSWERS = [("a cat", "a large dog"), ("red and blue", "green"), ("it is 7", "it is 11 or so")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another one as its reference, three pairs with pictures of three sizes, scores of the reference."""
    folder = tmp_path_factory.mktemp("media-pairs")
    tiny_vlm.write_model(folder / "model", "qwen2_5_vl")
    tiny_vlm.write_model(folder / "reference", "qwen2_5_vl", seed=1)
    rows: list[dict[str, Any]] = []
    for index, (chosen, rejected) in enumerate(ANSWERS):
        media_models.save_picture(folder / f"{index}.png", 60 + 30 * index, 90, seed=index)
        messages = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": chosen}]
        rows.append({"messages": messages, "rejected_response": rejected, "images": [f"{index}.png"]})
    data, model = media_models.write_lines(folder / "rows.jsonl", rows), str(folder / "model")
    run_stage(TOKENIZE, Tokenize(), {"data": [str(data)], "model": [model]}, folder / "tokens", Options())
    run_stage(PACK, Pack(row_tokens=1024), {"tokens": [str(folder / "tokens")]}, folder / "packed", Options())
    given = {"rows": [str(folder / "packed")], "model": [str(folder / "reference")]}
    run_stage(SCORE, Score(), given, folder / "scores", Options())
    return folder


def ours(world: Path) -> dict[str, Any]:
    cfg = make(Train, objective="dpo", steps=1, bins_per_step=1, lr=1e-3, warmup=0.0, beta=0.1, tuner="full")
    given = {"packed": [str(world / "packed")], "model": [str(world / "model")]}
    given |= {"scores": [f"ref={world / 'scores'}"]}
    run_stage(STAGE, cfg, given, world / "run", Options())
    found: dict[str, Any] = json.loads((world / "run" / "metrics.jsonl").read_text().splitlines()[0])
    return found


def trls(world: Path) -> dict[str, Any]:
    from PIL import Image
    from transformers import AutoModelForMultimodalLM, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    ask = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what?<|im_end|>\n<|im_start|>assistant\n"
    rows = [
        {
            "images": [Image.open(world / f"{index}.png").convert("RGB")],
            "prompt": ask,
            "chosen": f"{chosen}<|im_end|>",
            "rejected": f"{rejected}<|im_end|>",
        }
        for index, (chosen, rejected) in enumerate(ANSWERS)
    ]
    model, reference = (
        AutoModelForMultimodalLM.from_pretrained(world / name, dtype=torch.float32) for name in ("model", "reference")
    )
    args = DPOConfig(
        output_dir=str(world / "trl"),
        per_device_train_batch_size=len(rows),
        max_steps=1,
        beta=0.1,
        max_length=None,
        learning_rate=1e-3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(world / "model"),
    )
    trainer.train()
    found: dict[str, Any] = next(line for line in trainer.state.log_history if "loss" in line)
    return found


def test_loss_and_gradient_are_trls(world: Path) -> None:
    mine, theirs = ours(world), trls(world)
    assert abs(mine["loss"] - 0.6931) > 1e-2, "the reference is another model"
    assert mine["loss"] == pytest.approx(float(theirs["loss"]), abs=2e-4)  # TRL rounds what it logs
    assert mine["grad_norm"] == pytest.approx(float(theirs["grad_norm"]), rel=1e-4)


def test_both_sides_of_a_pair_share_their_picture(world: Path) -> None:
    import numpy as np

    from postmill.stages.shared.batch import collate
    from postmill.stages.shared.media.pixels import Pixels

    reader = PackedReader(world / "packed")
    assert reader.num_rows == 2 * len(ANSWERS)
    rows = np.arange(reader.num_rows)
    batch = collate([reader.token_rows.lay(rows)])
    media = Pixels(world / "model").of_rows(reader.token_rows, rows, batch)
    assert media is not None
    assert len(media.seen["image"].lengths_D) == len(ANSWERS)
    assert len(media.seen["image"].which_N) == 2 * len(ANSWERS)
