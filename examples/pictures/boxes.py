"""Teach a model of 2 million weights, from nothing, to say where a digit is.

    python examples/pictures/boxes.py DIR

Each picture is a black canvas of 128 x 128 pixels with a handwritten digit of 32 or 48 pixels on it; the answer is its
box in thousandths, as a Qwen3-VL writes one. Rows have `objects` in pixels, so `tokenize` writes those boxes, and
`eval` reads the model's back into pixels. 360 digits that were not trained on are looked for: about five minutes on
one core.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers as t
from PIL import Image
from tiny import NUM_TRAINED, TEMPLATE, TEXT, digits, metrics, postmill, token_ids, tokenizer, write_lines

SIDE, MARGIN = 128, 16
PLACES = [
    (x, y, size)
    for size in (32, 48)
    for x in range(MARGIN, SIDE - MARGIN - size + 1, 16)
    for y in range(MARGIN, SIDE - MARGIN - size + 1, 16)
]
"""41 boxes. None touches the rim, so that all their sides have three digits in thousandths."""
COPIES = 10
"""Canvases for each digit. Fresh ones teach more than the same ones again."""
QUESTION = "<image>Where is the <ref-object>?"


class Found(NamedTuple):
    """What came of it."""

    accuracy: float
    """Share of the held-out digits whose box overlaps (IoU) by more than a half."""
    train_s: float
    """Processor time of training, in seconds."""
    all_s: float
    """Of all stages."""


def canvas(rng: np.random.Generator, digit: Image.Image) -> tuple[Image.Image, list[int]]:
    """A picture with the digit somewhere, and its box."""
    picture = Image.new("L", (SIDE, SIDE))
    x, y, size = PLACES[rng.integers(len(PLACES))]
    picture.paste(digit.resize((size, size), Image.Resampling.BICUBIC), (x, y))
    return picture, [x, y, x + size, y + size]


def write_data(folder: Path) -> None:
    """Canvases for each digit to train on, every one seen once, as rows; a question about each that is held out."""
    every, rng = digits(), np.random.default_rng(1)
    (folder / "canvases").mkdir(parents=True, exist_ok=True)
    rows, questions = [], []
    for number in [*(n for _ in range(COPIES) for n in range(NUM_TRAINED)), *range(NUM_TRAINED, len(every))]:
        digit, label = every[number]
        picture, box = canvas(rng, digit)
        file = f"canvases/{len(rows) + len(questions)}.png"
        picture.save(folder / file)
        known = {"images": [file], "objects": {"ref": [label], "bbox": [box]}}
        if number < NUM_TRAINED:
            rows.append({"query": QUESTION, "response": "<bbox>", **known})
        else:
            questions.append({"question": QUESTION, **known})
    write_lines(folder / "train.jsonl", rows)
    write_lines(folder / "held-out.jsonl", questions)


def write_model(folder: Path) -> None:
    """A Qwen3-VL of 2 million random weights, its tokenizer and processor."""
    own = tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    config = t.Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 32, "rope_parameters": rope},
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        **token_ids(own),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    t.AutoModelForMultimodalLM.from_config(config).save_pretrained(folder)
    images = t.Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": SIDE * SIDE})
    videos = t.Qwen3VLVideoProcessor()
    t.Qwen3VLProcessor(images, own, videos, chat_template=TEMPLATE).save_pretrained(folder)


def run(folder: Path) -> Found:
    """Each stage as a command."""
    write_data(folder)
    write_model(folder / "model")
    tokens, packed, trained = folder / "tokens", folder / "packed", folder / "run"
    seconds = postmill("tokenize", folder / "train.jsonl", "-m", folder / "model", "-o", tokens)
    seconds += postmill("pack", tokens, "-o", packed, "--row-tokens", 2432)
    step = ("--tuner", "full", "--bins-per-step", 1, "--adamw.beta2", 0.98)
    schedule = ("--epochs", 1, "--lr", 2e-3, "--warmup", 30)
    train_s = postmill("train", packed, "-m", folder / "model", "-o", trained, *step, *schedule)
    asked = ("--ask", folder / "held-out.jsonl", "--max-new-tokens", 32)
    seconds += postmill("eval", trained, "-o", folder / "answers", *asked)
    return Found(metrics(folder / "answers")["accuracy"], train_s, seconds + train_s)


if __name__ == "__main__":
    found = run(Path(sys.argv[1]))
    print(f"{found.accuracy:.1%} of the held-out digits are found")
    print(f"processor time: {found.train_s:.0f} s of training, {found.all_s:.0f} s of all stages")
