"""A loop on a model of a few thousand parameters: what `postmill loop` needs, made on the spot."""

import json
from pathlib import Path

import tiny_model
from tiny_tokenizer import write_tokenizer

RECIPE = """
[prompts]
stage = "tokenize"
for = "prompt"

[rollout]
policy = "model"
samples = 4
max_new_tokens = 3
[reward]
functions = "{folder}/mine.py:letters"
[pack]
rewards = "reward"
row_tokens = 128
[train]
objective = "rl"
rewards = "reward"
rank = 4
lr = 0.05

[loop]
rounds = 3
prompts = 3
{more}
"""
FUNCTION = """
def letters(row):
    return float(any(letter in row.output for letter in "abcdefghijklmnop"))
"""


def write_world(
    folder: Path, recipe: str = RECIPE, function: str = FUNCTION, num_asks: int = 5, more: str = ""
) -> Path:
    """A model, questions, a reward function and `loop.toml`, in `folder`. `more` goes into the recipe's `[loop]`."""
    import torch

    torch.set_num_threads(1)
    base = tiny_model.write_model(folder / "base", hidden_size=16, vocab_size=263, num_hidden_layers=1)
    (base / "chat_template.jinja").unlink()
    write_tokenizer(base)
    asks = [{"messages": [{"role": "user", "content": "n" * n}], "solution": str(n)} for n in range(num_asks)]
    (folder / "asks.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in asks))
    (folder / "mine.py").write_text(function)
    (folder / "loop.toml").write_text(recipe.format(folder=folder, more=more))
    return folder
