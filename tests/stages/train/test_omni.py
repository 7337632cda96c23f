"""Qwen2.5-Omni's thinker: rows with pictures and sounds are what its processor and transformers make of them."""

import json
from pathlib import Path
from typing import Any

import media_models
import numpy as np
import pytest
import tiny_audio
import torch
from media_case import TOLERANCE, Case, largest, plain_model, trained, weights_of

from postmill.io.errors import ConfigError
from postmill.stages.shared.media.families.table import find_family
from postmill.stages.shared.media.sound import decode_wav

pytest.importorskip("torchvision")
QUESTIONS = ["<image>what<audio>", "<audio>is<image>it", "<image>", "<audio>here", "nothing", "<image><audio><audio>"]


def write_rows(folder: Path) -> Path:
    """Rows with a picture, with sounds, with both in either order, and with none."""
    rows: list[dict[str, Any]] = []
    for index, text in enumerate(QUESTIONS):
        sounds = [f"{index}-{number}.wav" for number in range(text.count("<audio>"))]
        for number, name in enumerate(sounds):
            tiny_audio.save_sound(folder / name, 6000 + 3100 * index + 900 * number, seed=index)
        media_models.save_picture(folder / f"{index}.png", 40 + 13 * index, 91, seed=index)
        answer = {"role": "assistant", "content": f"the answer is {index}"}
        row = {"messages": [{"role": "user", "content": text}, answer], "audios": sounds}
        rows.append(row | {"images": [f"{index}.png"] * text.count("<image>")})
    return media_models.write_lines(folder / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("omni"), "qwen2_5_omni", write_rows)


def files(case: Case, row: int) -> tuple[list[Any], list[Any]]:
    """Pictures and sounds of a row, decoded."""
    from PIL import Image

    items = case.reader.token_rows.pictures(np.array([row]))[0]
    images = [Image.open(item.place).convert("RGB") for item in items if item.kind == "image"]
    return images, [decode_wav(item.load(), item.place)[0] for item in items if item.kind == "audio"]


def own(case: Case, row: int) -> dict[str, Any]:
    """What the family's own processor makes of a row."""
    images, sounds = files(case, row)
    parts = {"<image>": {"type": "image"}, "<audio>": {"type": "audio"}}
    pieces = QUESTIONS[row].replace("<", "\0<").replace(">", ">\0").split("\0")
    content = [parts.get(piece, {"type": "text", "text": piece}) for piece in pieces if piece]
    said = {"role": "assistant", "content": [{"type": "text", "text": f"the answer is {row}"}]}
    text = case.processor.apply_chat_template([{"role": "user", "content": content}, said], tokenize=False)
    return dict(case.processor(text=text, images=images or None, audio=sounds or None, return_tensors="pt"))


def test_ids_are_the_processors(case: Case) -> None:
    for row in range(len(QUESTIONS)):
        ours = case.reader.token_rows.lay(np.array([row])).input_ids.tolist()
        assert own(case, row)["input_ids"][0].tolist() == ours


def test_rows_are_what_transformers_makes_of_them_alone_and_packed(case: Case) -> None:
    rows = list(range(len(QUESTIONS)))
    alone = [case.logp(case.batch([row]))[0] for row in rows]
    net = plain_model(case.folder)
    with torch.no_grad():
        for row in rows:
            inputs = own(case, row)
            logits = net(use_cache=False, **inputs).logits[0, :-1]
            wanted = logits.log_softmax(-1).gather(-1, inputs["input_ids"][0, 1:, None]).squeeze(-1)
            assert largest([alone[row]], [wanted]) < TOLERANCE
    for order in (rows, rows[::-1]):
        assert largest(case.logp(case.batch(order)), [alone[row] for row in order]) < TOLERANCE


@pytest.mark.parametrize("frozen", [["audio", "vision", "projector"], ["language"]])
def test_parts_can_be_frozen_and_what_is_saved_loads(case: Case, frozen: list[str], tmp_path: Path) -> None:
    from postmill.stages.shared.media.groups import group_of

    out = trained(case, tmp_path / "run", tuner="full", freeze=frozen)
    before, after, parts = weights_of(case.folder), weights_of(out), group_of(case.net)
    changed = {parts[name] for name in before if name in parts and not torch.equal(before[name], after[name])}
    assert changed == {"audio", "vision", "projector", "language"} - set(frozen)


def test_a_folder_with_the_talker_says_what_to_do(case: Case, tmp_path: Path) -> None:
    case.processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": {}}))
    with pytest.raises(ConfigError, match="save the thinker alone"):
        find_family(tmp_path, {})
