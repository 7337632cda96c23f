"""Boxes of objects: through the resize that the model sees, in each family's own writing."""

from pathlib import Path
from typing import Any

import media_models
import pytest

from postmill.io.ledger import read_ledger
from postmill.io.schemas import TOKENS_V1, with_media
from postmill.io.table import TableReader
from postmill.stages.runner import Options, run_stage
from postmill.stages.tokenize.config import STAGE, Tokenize

pytest.importorskip("torchvision")
pytest.importorskip("num2words")
WIDTH, HEIGHT = 300, 200


def tokenize(out: Path, data: Path, model: Path, **config: Any) -> list[dict[str, Any]]:
    run_stage(STAGE, Tokenize(**config), {"data": [str(data)], "model": [str(model)]}, out, Options())
    table = TableReader(out / "tokens.arrow", with_media(TOKENS_V1))
    return [row for batch in table for row in batch.to_pylist()]


def row(objects: Any, answer: str = "<ref-object> is at <bbox>, <bbox>", **more: Any) -> dict[str, Any]:
    return {"query": "<image>where?", "response": answer, "images": ["a.png"], "objects": objects} | more


def answers(processor: Any, found: list[dict[str, Any]]) -> list[str]:
    """The trained text of each row."""
    return [
        "".join(processor.tokenizer.decode(each["input_ids"][s["start"] : s["end"]]) for s in each["spans"])
        for each in found
    ]


BOXES = {"ref": ["a cat"], "bbox": [[30, 50, 150, 200], [75, 101]]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "qwen2_vl",
            "<|object_ref_start|>a cat<|object_ref_end|> is at <|box_start|>(100,250),(500,1000)<|box_end|>,"
            " <|box_start|>(250,505)<|box_end|>",
        ),
        ("qwen2_5_vl", "a cat is at [31, 49, 154, 196], [77, 99]"),  # 300 by 200 becomes 308 by 196
        ("qwen3_vl", "a cat is at [100, 250, 500, 1000], [250, 505]"),
        ("internvl", "<ref>a cat</ref> is at <box>[[100, 250, 500, 1000]]</box>, <box>[[250, 505]]</box>"),
    ],
)
def test_each_family_writes_boxes_as_it_learnt_them(name: str, expected: str, tmp_path: Path) -> None:
    processor = media_models.save_processor(tmp_path / "model", name)
    media_models.save_picture(tmp_path / "a.png", WIDTH, HEIGHT)
    shares = {"ref": ["a cat"], "bbox": [[0.1, 0.25, 0.5, 1], [0.25, 0.505]], "bbox_type": "norm1"}
    thousandths = {"ref": ["a cat"], "bbox": [[100, 250, 500, 1000], [250, 505]], "bbox_type": "norm1000"}
    rows = [row(BOXES), row(shares), row(thousandths), row({}, expected)]
    found = tokenize(tmp_path / "out", media_models.write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "model")
    assert answers(processor, found) == [f"{expected}<|im_end|>"] * 4
    assert [each["input_ids"] for each in found[:3]] == [found[3]["input_ids"]] * 3, "as if it had been written by hand"
    if name == "qwen2_5_vl":
        [media] = found[0]["media"]
        assert (media["grid_w"] * 14, media["grid_h"] * 14) == (308, 196)


def test_boxes_name_their_picture_and_stand_in_questions(tmp_path: Path) -> None:
    processor = media_models.save_processor(tmp_path / "model", "qwen3_vl")
    media_models.save_picture(tmp_path / "a.png", WIDTH, HEIGHT)
    media_models.save_picture(tmp_path / "b.png", 100, 400)
    objects = {"bbox": [[50, 100, 100, 200], [150, 100, 300, 200]], "image_id": [1, 0], "ref": ["x", "y"]}
    data = {"query": "<image><image>what is at <bbox>?", "response": "<ref-object> and <ref-object> at <bbox>"}
    rows = [data | {"images": ["a.png", "b.png"], "objects": objects}]
    [found] = tokenize(tmp_path / "out", media_models.write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "model")
    text = processor.tokenizer.decode(found["input_ids"])
    assert "what is at [500, 250, 1000, 500]?" in text
    assert "x and y at [500, 500, 1000, 1000]" in text


def test_a_turned_picture_has_its_boxes_upright(tmp_path: Path) -> None:
    from PIL import Image

    processor = media_models.save_processor(tmp_path / "model", "qwen3_vl")
    exif = Image.Exif()
    exif[0x0112] = 6
    media_models.picture(WIDTH, HEIGHT).save(tmp_path / "a.png", exif=exif)
    rows = [row({"bbox": [[20, 30, 200, 300]]}, "<bbox>")]
    found = tokenize(tmp_path / "out", media_models.write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "model")
    assert answers(processor, found) == ["[100, 100, 1000, 1000]<|im_end|>"]


def test_boxes_that_cannot_be_are_lines_of_the_ledger(tmp_path: Path) -> None:
    media_models.save_processor(tmp_path / "model", "qwen3_vl")
    media_models.save_picture(tmp_path / "a.png", WIDTH, HEIGHT)
    bad: list[Any] = [
        {"bbox": [[0, 0, 301, 10]]},
        {"bbox": [[-1, 0, 30, 10]]},
        {"bbox": [[30, 0, 20, 10]]},
        {"bbox": [[1, 2, 3]]},
        {"bbox": [["1", 2, 3, 4]]},
        {"bbox": [[0, 0, 1, 1]], "bbox_type": "norm2"},
        {"bbox": [[0, 0, 2, 1]], "bbox_type": "norm1"},
        {"bbox": [[0, 0, 1, 1]], "image_id": [1]},
        {"bbox": [[0, 0, 1, 1]], "image_id": [0, 0]},
        {"bbox": [[0, 0, 1, 1], [0, 0, 1, 1]]},
        {"bbox": []},
        {"bbox": [[0, 0, 1, 1]], "ref": ["x"]},
        {"bbox": "0 0 1 1"},
        [[0, 0, 1, 1]],
    ]
    rows = [row(objects, "<bbox>") for objects in bad]
    good = [row({"bbox": [[0, 0, 300, 200]]}, "<bbox>")] * (len(rows) + 1)
    data = media_models.write_lines(tmp_path / "rows.jsonl", rows + good)
    found = tokenize(tmp_path / "out", data, tmp_path / "model", on_bad_row="skip")
    assert len(found) == len(good)
    assert [line["reason"] for line in read_ledger(tmp_path / "out").to_pylist()] == ["media_box"] * len(rows)
    media_models.save_processor(tmp_path / "llava", "llava")
    found = tokenize(
        tmp_path / "other",
        media_models.write_lines(tmp_path / "x.jsonl", rows[:1] + [rows[0] | {"objects": {}}] * 2),
        tmp_path / "llava",
        on_bad_row="skip",
    )
    assert len(found) == 2
    assert [line["reason"] for line in read_ledger(tmp_path / "other").to_pylist()] == ["media_box"]
