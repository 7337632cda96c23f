"""Questions with one right word: "List: pear, dog, lamp, cup. Say the word at place 3." Writes three files here.

    python kth.py [FOLDER]

`warm.jsonl` has a few answered questions, which teach the form of an answer; `ask.jsonl` and `held_out.jsonl` have
questions and their solutions, no question twice.
"""

import json
import random
import sys
from pathlib import Path

WORDS = [
    "apple",
    "bird",
    "boat",
    "book",
    "cake",
    "car",
    "cat",
    "chair",
    "cloud",
    "coin",
    "cow",
    "cup",
    "desk",
    "dog",
    "door",
    "duck",
    "egg",
    "farm",
    "fish",
    "flag",
    "frog",
    "game",
    "gold",
    "hand",
    "hat",
    "horse",
    "house",
    "key",
    "king",
    "lake",
    "lamp",
    "leaf",
    "lion",
    "map",
    "milk",
    "moon",
    "nose",
    "pear",
    "pen",
    "pig",
    "plane",
    "rain",
    "ring",
    "road",
    "rock",
    "rose",
    "salt",
    "ship",
    "shoe",
    "snow",
    "sock",
    "star",
    "stone",
    "sun",
    "tent",
    "train",
    "tree",
    "wall",
    "wolf",
]
SYSTEM = "Answer with one word."
LENGTH = 4


def questions(count: int, seed: int) -> list[dict[str, object]]:
    """`count` different questions with their solutions."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        words, place = draw.sample(WORDS, LENGTH), draw.randrange(LENGTH)
        found[f"List: {', '.join(words)}. Say the word at place {place + 1}."] = words[place]
    return [
        {
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
            "solution": solution,
        }
        for text, solution in found.items()
    ]


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    every = questions(48 + 96 + 4000, seed=0)
    warm, held_out, ask = every[:48], every[48:144], every[144:]
    for row in warm:
        row["messages"] = [*row["messages"], {"role": "assistant", "content": row.pop("solution")}]
    for name, rows in {"warm": warm, "held_out": held_out, "ask": ask}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
