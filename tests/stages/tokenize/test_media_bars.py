"""Much of what `test_media.py` tests a little of: chats of every family, and sizes from 1 to 8,000 pixels."""

import random
import struct
import zlib
from pathlib import Path
from typing import Any

import media_models
import pytest
import torch

from postmill.io.schemas import TOKENS_V1, with_media
from postmill.io.table import TableReader
from postmill.stages.runner import Options, run_stage
from postmill.stages.tokenize.config import STAGE, Tokenize

pytest.importorskip("torchvision")
pytest.importorskip("num2words")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]  # SmolVLM cuts each picture into 17 tiles of 512
CHATS = 500
SIZES = 2000
TEXTS = ["What is this?", "he saw\n\n", " in.\n", "\n", "Ünïcode: 图", "a.\n\n\nhe", "  ", "7", "the\tend: \n"]


def tokenize(out: Path, data: Path, model: Path) -> list[dict[str, Any]]:
    run_stage(STAGE, Tokenize(), {"data": [str(data)], "model": [str(model)]}, out, Options())
    table = TableReader(out / "tokens.arrow", with_media(TOKENS_V1))
    return [row for batch in table for row in batch.to_pylist()]


def chat(rng: random.Random, files: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """One to three turns, up to four pictures, text before, between and behind them."""
    messages: list[dict[str, Any]] = []
    used: list[str] = []
    for turn in range(rng.randint(1, 3)):
        parts: list[dict[str, Any]] = []
        for _ in range(rng.randint(0 if turn else 1, min(2, 4 - len(used)))):
            parts += [{"type": "text", "text": rng.choice(TEXTS)}] if rng.random() < 0.4 else []
            parts.append({"type": "image"})
            used.append(rng.choice(files))
        parts.append({"type": "text", "text": rng.choice(TEXTS)})
        answer = [{"type": "text", "text": rng.choice(TEXTS)}]
        messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return messages, used


@pytest.mark.parametrize("name", [name for name in media_models.FAMILIES if name != "paligemma"])
def test_ids_of_chats_are_the_processors(name: str, tmp_path: Path) -> None:
    from PIL import Image

    processor = media_models.save_processor(tmp_path / "model", name)
    rng = random.Random(name)
    files = []
    for number in range(24):
        width = rng.choice([20, 33, 56, 112, 200, 333])
        files.append(str(media_models.save_picture(tmp_path / f"{number}.png", width, rng.choice([24, 60, 111, 250]))))
    chats = [chat(rng, files) for _ in range(CHATS)]
    rows = [{"messages": messages, "images": used} for messages, used in chats]
    found = tokenize(tmp_path / "out", media_models.write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "model")
    pictures = {file: Image.open(file).convert("RGB") for file in files}
    wrong = 0
    for (messages, used), row in zip(chats, found, strict=True):
        waiting = iter(used)
        filled = [
            message
            | {
                "content": [
                    p | {"image": pictures[next(waiting)]} if p["type"] == "image" else p for p in message["content"]
                ]
            }
            for message in messages
        ]
        options = {"images_kwargs": {"do_convert_rgb": True}}
        made = processor.apply_chat_template(filled, tokenize=True, return_dict=True, processor_kwargs=options)
        wrong += list(made["input_ids"][0]) != row["input_ids"]
    assert wrong == 0


def header_of(width: int, height: int) -> bytes:
    """A PNG without a pixel: its size is all that is read here."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    form = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", form) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def sizes(rng: random.Random) -> list[tuple[int, int]]:
    """Width and height: all that fit under 200 to 1, small ones more often, and the borders of whole cells."""
    found = [(1, 1), (8000, 6000), (6000, 8000), (200, 1), (1, 200), (4000, 20)]
    while len(found) < SIZES:
        width = int(2 ** rng.uniform(0, 12.9))
        height = int(2 ** rng.uniform(0, 12.5))
        if rng.random() < 0.2:
            width, height = (max(1, round(side / 28) * 28 + rng.choice([-1, 0, 1])) for side in (width, height))
        if max(width, height) / min(width, height) < 199:
            found.append((width, height))
    return found


def features_of_llama4(processor: Any, shape: tuple[int, int]) -> int:
    """By the canvas that its image processor chooses."""
    from transformers.models.llama4.image_processing_llama4 import find_supported_resolutions, get_best_fit

    images = processor.image_processor
    canvases = torch.tensor(find_supported_resolutions(images.max_patches, images.size))
    tiles = int(get_best_fit(shape, canvases).prod()) // images.size.height**2
    one_tile = (images.size.height // processor.patch_size) ** 2 // processor.downsample_ratio
    return one_tile * (tiles + 1 if tiles > 1 else 1)


@pytest.mark.parametrize("name", [n for n in media_models.FAMILIES if n not in ("smolvlm", "paligemma")])
def test_counts_of_sizes_are_the_processors(name: str, tmp_path: Path) -> None:
    """Against the processors' own helper, which counts without pixels; SmolVLM has none, Llama 4's is another."""
    processor = media_models.save_processor(tmp_path / "model", name)
    wanted = sizes(random.Random(1))
    if name == "pixtral":  # whose helper takes a height of 1 or 3 for colours
        wanted = [size for size in wanted if size[1] not in (1, 3)]
    rows = []
    for width, height in wanted:
        (tmp_path / f"{width}x{height}.png").write_bytes(header_of(width, height))
        rows.append({"query": "<image>?", "response": "a", "images": [f"{width}x{height}.png"]})
    found = tokenize(tmp_path / "out", media_models.write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "model")
    shapes = [(height, width) for width, height in wanted]
    if name == "llama4":
        counts = [features_of_llama4(processor, shape) for shape in shapes]
    else:
        counts = processor._get_num_multimodal_tokens(image_sizes=shapes)["num_image_tokens"]
    counts_marks = name in ("internvl", "idefics3", "pixtral")
    media = [row["media"][0] for row in found]
    ours = [each["end"] - each["start"] if counts_marks else each["features"] for each in media]
    wrong = [(size, a, b) for size, a, b in zip(wanted, ours, counts, strict=True) if a != b]
    assert wrong == []
