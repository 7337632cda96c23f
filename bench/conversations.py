"""Conversations for benchmarks: many, with several turns, of real text that hardly repeats.

Three of four are about the Python sources installed beside this one: a question names a definition, the answer is its
text (English comments, code), and the next question is about the next definition of the file, so no answer comes twice.
One of four joins questions and answers of LLaMA-Factory's demo sets in two languages, which do come again.
"""

import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Turns = list[dict[str, str]]
_QUESTIONS = (
    "What does `{}` in `{}` look like?",
    "Please show me the source of `{}` from {}, I want to learn how it works.",
    "给我看看 {1} 里的 `{0}`。",
    "How is `{}` written ({})?",
)
_DEFINITION = re.compile(r"^(?:    )?(?:async )?(?:def|class) (\w+)", re.MULTILINE)


def _turn(question: str, answer: str) -> Turns:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _definitions(path: Path, module: str) -> Iterator[Turns]:
    """A question and its answer for each definition of a file, of 200 to 2000 characters."""
    try:
        text = path.read_text("utf-8")
    except (UnicodeDecodeError, OSError):
        return
    found = list(_DEFINITION.finditer(text))
    for number, (match, after) in enumerate(itertools.pairwise([*found, None])):
        assert match is not None
        answer = text[match.start() : after.start() if after else len(text)].strip()
        if 200 <= len(answer) <= 2000:
            question = _QUESTIONS[(len(answer) + number) % len(_QUESTIONS)].format(match[1], module)
            yield _turn(question, answer)


def _of_sources(folder: Path, rng: random.Random) -> Iterator[Turns]:
    """Conversations of one to four turns, each within a file."""
    paths = sorted(folder.rglob("*.py"))
    rng.shuffle(paths)
    for path in paths:
        turns = _definitions(path, ".".join(path.relative_to(folder).with_suffix("").parts))
        while chat := list(itertools.islice(turns, rng.randint(1, 4))):
            yield list(itertools.chain.from_iterable(chat))


def _of_demos(folder: Path, rng: random.Random) -> Iterator[Turns]:
    """Conversations of one to three turns, without end."""
    pairs = []
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        for row in json.loads((folder / f"{name}.json").read_text("utf-8")):
            pairs.append((f"{row['instruction']}\n{row['input']}".strip(), row["output"]))
    for name in ("dpo_en_demo", "dpo_zh_demo"):
        for row in json.loads((folder / f"{name}.json").read_text("utf-8")):
            if len(row["conversations"]) == 1:
                pairs.append((row["conversations"][0]["value"], row["chosen"]["value"]))
    while True:
        chosen = rng.sample(pairs, rng.randint(1, 3))
        yield list(itertools.chain.from_iterable(_turn(*pair) for pair in chosen))


def chats(num_rows: int, sources: Path, demos: Path) -> Iterator[dict[str, Any]]:
    """At most `num_rows` rows `{"messages": [...]}`; the same ones for the same files. Ends when the sources do."""
    rng = random.Random(0)
    of_sources, of_demos = _of_sources(sources, rng), _of_demos(demos, rng)
    for number in range(num_rows):
        chat = next(of_demos if number % 4 == 3 else of_sources, None)
        if chat is None:
            return
        yield {"messages": chat}


def write(path: Path, rows: Iterator[dict[str, Any]]) -> tuple[int, float]:
    """Writes JSON Lines; returns rows and MB."""
    count = size = 0
    with path.open("wb") as file:
        for row in rows:
            size += file.write(json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n")
            count += 1
    return count, size / 1e6
