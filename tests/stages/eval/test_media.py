"""Questions about pictures: answers are those of transformers' own generation."""

import json
from pathlib import Path
from typing import Any

import media_models
import pytest
import tiny_vlm
import torch

from postmill.io.errors import ArtifactError
from postmill.io.schemas import EVAL_ITEMS_V1
from postmill.io.table import TableReader
from postmill.stages.eval.config import STAGE, Eval
from postmill.stages.runner import Options, run_stage

pytest.importorskip("torchvision")
pytest.importorskip("num2words")


def ask(model: Path, questions: Path, out: Path) -> list[dict[str, Any]]:
    cfg = Eval(max_new_tokens=5, temperature=0.0, max_errors=1.0)
    run_stage(STAGE, cfg, {"tested": [str(model)], "ask": [str(questions)]}, out, Options())
    return [row for batch in TableReader(out / "items.arrow", EVAL_ITEMS_V1) for row in batch.to_pylist()]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "llava"])
def test_answers_are_those_of_generate(name: str, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoModelForMultimodalLM

    processor = tiny_vlm.write_model(tmp_path / "model", name)
    media_models.save_picture(tmp_path / "a.png", 90, 60)
    media_models.save_picture(tmp_path / "b.png", 50, 120, seed=1)
    rows = [
        {"question": "<image>what is it?", "images": ["a.png"]},
        {"question": "hello"},
        {"question": "<image>and<image>differ?", "images": ["a.png", "b.png"]},
    ]
    found = ask(tmp_path / "model", media_models.write_lines(tmp_path / "ask.jsonl", rows), tmp_path / "out")
    net = AutoModelForMultimodalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    for row, item in zip(rows, found, strict=True):
        assert item["error"] is None
        parts: list[dict[str, Any]] = []
        files = iter(row.get("images", []))
        for index, piece in enumerate(str(row["question"]).split("<image>")):
            parts += [{"type": "image", "image": Image.open(tmp_path / next(files)).convert("RGB")}] if index else []
            parts += [{"type": "text", "text": piece}] if piece else []
        made = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            ids = net.generate(**made, max_new_tokens=5, do_sample=False, eos_token_id=-1)
        length = made["input_ids"].shape[1]
        assert item["prompt_ids"] == made["input_ids"][0].tolist()
        assert item["output_ids"] == ids[0, length : length + len(item["output_ids"])].tolist()


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"question": "<image>?", "images": []}, None),
        ({"question": "what?", "images": ["a.png"]}, "1 images and 0 places"),
        ({"question": "<image>", "images": ["../a.png"]}, "not below the folder"),
        ({"question": "<image>", "images": ["b.png"]}, "no such file"),
    ],
)
def test_questions_that_cannot_be_asked(row: dict[str, Any], what: str | None, tmp_path: Path) -> None:
    from postmill.stages.eval.questions import read_questions

    media_models.save_picture(tmp_path / "a.png", 20, 20)
    (tmp_path / "ask.jsonl").write_text(json.dumps(row))
    if what is None:
        assert read_questions(Eval(), tmp_path / "ask.jsonl")[0].pictures == []
        return
    with pytest.raises(ArtifactError, match=what):
        read_questions(Eval(), tmp_path / "ask.jsonl")
