"""What the examples with pictures share: real digits, a tokenizer of 263 tokens, and stages as commands.

Bytes are tokens. A vocabulary of usual size would cost four times as much a step, for words that are never said.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import transformers as t
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

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
TEXT = {
    "vocab_size": 264,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "pad_token_id": 256,
    "bos_token_id": None,
    "eos_token_id": 258,
}
"""The language model of a model, but for how its positions turn."""


def digits() -> list[tuple[Image.Image, str]]:
    """1,797 pictures of 8 x 8 pixels and what they show, in one order; the first 1,437 are for training."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images)).tolist()
    pictures = [Image.fromarray((found.images[number] * 255 / 16).astype(np.uint8)) for number in order]
    return [(picture, str(found.target[number])) for picture, number in zip(pictures, order, strict=True)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tokenizer() -> t.PreTrainedTokenizerFast:
    """A token for each byte and each mark of Qwen's chats."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    own.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return t.PreTrainedTokenizerFast(
        tokenizer_object=own,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )


def token_ids(own: t.PreTrainedTokenizerFast) -> dict[str, int]:
    """Members of a Qwen's config that name the marks of pictures."""
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"{name}_token_id": name for name in ("vision_start", "vision_end")}
    return {name: own.convert_tokens_to_ids(f"<|{text}|>") for name, text in names.items()}


def postmill(*argv: object) -> float:
    """Run a stage as a command; its seconds of processor time.

    One thread: for models so small, threads wait for each other longer than they work.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "postmill.cli.main", *map(str, argv), "--threads", "1", "-q"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def metrics(artifact: Path) -> dict[str, Any]:
    """What the manifest of an artifact says of its work."""
    found: dict[str, Any] = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    return found
