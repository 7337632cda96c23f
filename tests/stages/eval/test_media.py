"""Questions about pictures: answers are those of transformers' own generation."""

import json
from pathlib import Path
from typing import Any

import media_models
import pytest
import tiny_vlm
import torch

from postmill.io.errors import ArtifactError
from postmill.io.schemas import EVAL_ITEMS_V1, TOKENS_V1, with_media
from postmill.io.table import TableReader
from postmill.stages.eval.config import STAGE, Eval
from postmill.stages.eval.questions import read_questions
from postmill.stages.eval.scoring import score
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.engine.text import Speaker
from postmill.stages.shared.measures import read_box
from postmill.stages.shared.media.prompt import to_parts
from postmill.stages.tokenize.config import STAGE as TOKENIZE
from postmill.stages.tokenize.config import Tokenize

pytest.importorskip("torchvision")
pytest.importorskip("num2words")


def asks_where(**objects: Any) -> dict[str, Any]:
    """A question with objects, of which some members may be others."""
    known = {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]} | objects
    return {"question": "<image>Where is the <ref-object>?", "images": ["a.png"], "objects": known}


def ask(model: Path, questions: Path, out: Path) -> list[dict[str, Any]]:
    cfg = Eval(max_new_tokens=5, temperature=0.0, max_errors=1.0)
    run_stage(STAGE, cfg, {"tested": [str(model)], "ask": [str(questions)]}, out, Options())
    return [row for batch in TableReader(out / "items.arrow", EVAL_ITEMS_V1) for row in batch.to_pylist()]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen2_5_omni", "smolvlm", "gemma3", "llava", "llama4"])
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
        made = made.to(torch.float32)  # Llama 4's processor gives bfloat16, whatever the model is
        with torch.no_grad():
            ids = net.generate(**made, max_new_tokens=5, do_sample=False, eos_token_id=-1)
        length = made["input_ids"].shape[1]
        assert item["prompt_ids"] == made["input_ids"][0].tolist()
        assert item["output_ids"] == ids[0, length : length + len(item["output_ids"])].tolist()


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_boxes_that_tokenize_writes_are_read_back_into_pixels(name: str, tmp_path: Path) -> None:
    size = {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}} if name.startswith("qwen") else {}
    made = media_models.save_processor(tmp_path / "model", name, **size)
    media_models.save_picture(tmp_path / "a.png", 300, 140)
    box = [30, 20, 155, 91]
    rows = [{"query": "<image>where?", "response": "<bbox>", "images": ["a.png"], "objects": {"bbox": [box]}}]
    data, model = media_models.write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "model"
    run_stage(TOKENIZE, Tokenize(), {"data": [str(data)], "model": [str(model)]}, tmp_path / "out", Options())
    table = TableReader(tmp_path / "out" / "tokens.arrow", with_media(TOKENS_V1))
    row = next(row for batch in table for row in batch.to_pylist())
    written = made.tokenizer.decode(row["input_ids"][row["spans"][0]["start"] :])
    speaker = Speaker([model])
    parts = to_parts([{"role": "user", "content": "<image>where?"}], [media_models.picture(300, 140)])
    _, inputs = speaker.picture_prompt(parts)
    assert speaker.boxes is not None
    scale = speaker.boxes.pixels_of_one((300, 140), inputs, 0)
    found = [number * scale[at % 2] for at, number in enumerate(read_box(written) or ())]
    assert found == pytest.approx(box, abs=0.51 * max(scale))


def test_answers_with_boxes_are_scored_in_pixels_of_the_picture(tmp_path: Path) -> None:
    tiny_vlm.write_model(tmp_path / "model", "qwen3_vl")
    media_models.save_picture(tmp_path / "a.png", 300, 140)
    data = media_models.write_lines(tmp_path / "ask.jsonl", [asks_where(bbox=[[30, 20, 150, 90]])])
    ask(tmp_path / "model", data, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "boxes.json").read_bytes()) == {"line-1": [0.3, 0.14]}
    question = read_questions(Eval(), data)[0]
    found = score(question, "[100, 143, 500, 643]", (0.3, 0.14))
    assert found.ok and found.value == pytest.approx(1, abs=1e-3) and found.reason.endswith("box 30, 20, 150, 90")
    assert not score(question, "[30, 20, 150, 90]", (0.3, 0.14)).ok
    again = tmp_path / "again"
    run_stage(STAGE, Eval(max_errors=1.0), {"tested": [str(tmp_path / "out")], "ask": [str(data)]}, again, Options())
    assert (again / "scores.arrow").read_bytes() == (tmp_path / "out" / "scores.arrow").read_bytes()


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"question": "<image>?", "images": []}, None),
        ({"question": "what?", "images": ["a.png"]}, "1 images and 0 places"),
        ({"question": "<image>", "images": ["../a.png"]}, "not below the folder"),
        ({"question": "<image>", "images": ["b.png"]}, "no such file"),
        (asks_where(bbox=[[5, 5, 1, 9]]), r"\[5.0, 5.0, 1.0, 9.0\] encloses nothing"),
        (asks_where(bbox=[[1, 2, 3]]), "length 4"),
        (asks_where(image_id=[1]), r"boxes of picture \[1\]; expected one picture, of the 1"),
        (asks_where(ref=[]), None),
        (asks_where(ref=["a", "b"]), "2 names of objects and 1 places"),
        (asks_where() | {"answer": "1, 2, 3, 4"}, "both an answer and objects"),
        (asks_where() | {"score": "exact"}, "boxes are compared by iou"),
    ],
)
def test_questions_that_cannot_be_asked(row: dict[str, Any], what: str | None, tmp_path: Path) -> None:
    media_models.save_picture(tmp_path / "a.png", 20, 20)
    (tmp_path / "ask.jsonl").write_text(json.dumps(row))
    if what is None:
        assert len(read_questions(Eval(), tmp_path / "ask.jsonl")[0].pictures) == len(row["images"])
        return
    with pytest.raises(ArtifactError, match=what):
        read_questions(Eval(), tmp_path / "ask.jsonl")
