"""Teach a model of 1.7 million weights, from nothing, to read handwritten digits: pictures through every stage.

    python examples/pictures/digits.py DIR

It makes 1,797 small pictures (scikit-learn's `load_digits`), questions about them and a Qwen2.5-VL of random weights
with a tokenizer of 263 tokens. Then `tokenize`, `pack` and `train` run as on any data, and 360 pictures that were not
trained on are read. About two minutes on one core.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as t
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from postmill.io.packed import PackedReader
from postmill.stages.shared import attention, hf
from postmill.stages.shared.asked import Ask
from postmill.stages.shared.forward import Forward
from postmill.stages.shared.media.pixels import Pixels
from postmill.stages.train.columns import BatchSource
from postmill.stages.train.objectives.needs import Needs

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NUM_TRAINED = 1437


def write_data(folder: Path) -> None:
    """Pictures of 56 x 56 pixels, and a file of questions for each side of the split."""

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in order.tolist():
        name = f"pictures/{number}.png"
        small = Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8))
        small.resize((56, 56), Image.Resampling.BICUBIC).save(folder / name)
        question = {"role": "user", "content": "<image>What digit is this?"}
        answer = {"role": "assistant", "content": str(digits.target[number])}
        rows.append(json.dumps({"messages": [question, answer], "images": [name]}))
    (folder / "train.jsonl").write_text("\n".join(rows[:NUM_TRAINED]))
    (folder / "held-out.jsonl").write_text("\n".join(rows[NUM_TRAINED:]))


def write_model(folder: Path) -> None:
    """A Qwen2.5-VL of 1.7 million random weights, its tokenizer and processor."""

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    own.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=own,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    numbers = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    marks = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    config = t.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 264,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "pad_token_id": 256,
            "bos_token_id": None,
            "eos_token_id": 258,
        },
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
        image_token_id=numbers["image_pad"],
        video_token_id=numbers["video_pad"],
        vision_start_token_id=marks["vision_start"],
        vision_end_token_id=marks["vision_end"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    t.AutoModelForMultimodalLM.from_config(config).save_pretrained(folder)
    images = t.Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112})
    videos = t.Qwen2VLVideoProcessor()
    t.Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder)


def postmill(*argv: object) -> None:
    """Run a stage as a command."""
    subprocess.run([sys.executable, "-m", "postmill.cli.main", *map(str, argv)], check=True)


def accuracy(model: Path, packed: Path) -> float:
    """Share of the rows whose answer is the model's likeliest token."""

    kernel = attention.choose("auto", torch.device("cpu"), torch.float32)
    forward = Forward(hf.load_model(model, "float32", attention=kernel), compute_dtype=torch.float32, backend="auto")
    source = BatchSource(PackedReader(packed), Needs(), pixels=Pixels(model))
    right = total = 0
    with torch.no_grad():
        for number in range(len(source.reader)):
            batch = source.load(np.array([number]))
            correct = forward.eval()(batch, Ask(stats=frozenset({"correct"}))).correct_T
            first = batch.mask_T & ~torch.cat([torch.zeros(1, dtype=torch.bool), batch.mask_T[:-1]])
            right += int(correct[first].sum())
            total += int(first.sum())
    return right / total


def run(folder: Path, epochs: int = 6) -> float:
    """All of it; the share of held-out digits that are read right."""
    write_data(folder)
    write_model(folder / "model")
    for name in ("train", "held-out"):
        postmill("tokenize", folder / f"{name}.jsonl", "-m", folder / "model", "-o", folder / f"{name}-tokens", "-q")
        tokens = folder / f"{name}-tokens"
        postmill("pack", tokens, "-o", folder / f"{name}-packed", "--row-tokens", 2048, "-q")
    schedule = ("--lr", 1e-3, "--epochs", epochs, "--bins-per-step", 1, "--adamw.beta2", 0.98)
    run_to = folder / "run"
    postmill("train", folder / "train-packed", "-m", folder / "model", "-o", run_to, "--tuner", "full", *schedule, "-q")
    return accuracy(run_to, folder / "held-out-packed")


if __name__ == "__main__":
    print(f"{run(Path(sys.argv[1])):.1%} of the held-out digits are read right")
