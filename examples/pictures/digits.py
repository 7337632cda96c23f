"""Teach a model of 1.7 million weights, from nothing, to read handwritten digits: pictures through every stage.

    python examples/pictures/digits.py DIR

It makes 1,797 small pictures (scikit-learn's `load_digits`), questions about them and a Qwen2.5-VL of random weights
with a tokenizer of 263 tokens. Then `tokenize`, `pack` and `train` run as on any data, and `eval` asks about 360
pictures that were not trained on. About two minutes on one core.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
import transformers as t
from PIL import Image
from tiny import NUM_TRAINED, TEMPLATE, TEXT, digits, metrics, postmill, token_ids, tokenizer, write_lines

QUESTION = "<image>What digit is this?"


class Found(NamedTuple):
    """What came of it."""

    accuracy: float
    """Share of the held-out digits that are read right."""
    train_s: float
    """Processor time of training, in seconds."""
    all_s: float
    """Of all stages."""


def write_data(folder: Path) -> None:
    """Pictures of 56 x 56 pixels, rows to train on, and questions about those that are held out."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows, questions = [], []
    for number, (small, digit) in enumerate(digits()):
        name = f"pictures/{number}.png"
        small.resize((56, 56), Image.Resampling.BICUBIC).save(folder / name)
        if number < NUM_TRAINED:
            rows.append({"query": QUESTION, "response": digit, "images": [name]})
        else:
            questions.append({"question": QUESTION, "answer": digit, "images": [name]})
    write_lines(folder / "train.jsonl", rows)
    write_lines(folder / "held-out.jsonl", questions)


def write_model(folder: Path) -> None:
    """A Qwen2.5-VL of 1.7 million random weights, its tokenizer and processor."""

    own = tokenizer()
    config = t.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}},
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1, 2],
        },
        **token_ids(own),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    t.AutoModelForMultimodalLM.from_config(config).save_pretrained(folder)
    images = t.Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112})
    videos = t.Qwen2VLVideoProcessor()
    t.Qwen2_5_VLProcessor(images, own, videos, chat_template=TEMPLATE).save_pretrained(folder)


def run(folder: Path, epochs: int = 6) -> Found:
    """All of it."""
    write_data(folder)
    model, tokens, packed, trained = (folder / name for name in ("model", "tokens", "packed", "run"))
    write_model(model)
    seconds = postmill("tokenize", folder / "train.jsonl", "-m", model, "-o", tokens)
    seconds += postmill("pack", tokens, "-o", packed, "--row-tokens", 2048)
    schedule = ("--lr", 1e-3, "--epochs", epochs, "--bins-per-step", 1, "--adamw.beta2", 0.98)
    train_s = postmill("train", packed, "-m", model, "-o", trained, "--tuner", "full", *schedule)
    asked = ("--ask", folder / "held-out.jsonl", "--score", "exact", "--max-new-tokens", 4)
    seconds += train_s + postmill("eval", trained, "-o", folder / "answers", *asked)
    return Found(metrics(folder / "answers")["accuracy"], train_s, seconds)


if __name__ == "__main__":
    found = run(Path(sys.argv[1]))
    print(f"{found.accuracy:.1%} of the held-out digits are read right")
    print(f"processor time: {found.train_s:.0f} s of training, {found.all_s:.0f} s of all stages")
