"""Conversations for benchmarks: many, nearly all of several turns, of real text in which no answer comes twice.

Most are about the Python sources installed beside this one: a question names a definition, the answer is its text
(English comments, code), and the next question is about the next definition of the file. Then the pages of
`texts.corpora` in four languages, where each question asks for the next passage of a page; and the questions and
answers of LLaMA-Factory's demo sets in two languages, once each. The kinds are mixed as long as they last.
"""

import itertools
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Turns = list[dict[str, str]]
_QUESTIONS = (
    "What does `{}` in `{}` look like?",
    "Please show me the source of `{}` from {}, I want to learn how it works.",
    "给我看看 {1} 里的 `{0}`。",
    "How is `{}` written ({})?",
)
_NEXT = ("Read me the page about “{}”.", "And what comes after that?", "继续。", "Please go on.")
_DEFINITION = re.compile(r"^(?:    )?(?:async )?(?:def|class) (\w+)", re.MULTILINE)
_ANSWER_CHARS = range(80, 2000)
_PASSAGE_CHARS = (120, 600)
_NUM_TURNS = (2, 2, 3, 3, 4)
_SHARES = {"sources": 12, "pages": 6, "demos": 1}


def _turn(question: str, answer: str) -> Turns:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _joined(turns: Iterable[Turns], rng: random.Random) -> Iterator[Turns]:
    """Conversations of two to four turns; the last of all may have fewer."""
    rest = iter(turns)
    while chat := list(itertools.islice(rest, rng.choice(_NUM_TURNS))):
        yield list(itertools.chain.from_iterable(chat))


def _definitions(path: Path, module: str, seen: set[int]) -> Iterator[Turns]:
    """A question and its answer for each definition of a file that is neither short nor long nor known."""
    try:
        text = path.read_text("utf-8")
    except (UnicodeDecodeError, OSError):
        return
    found = list(_DEFINITION.finditer(text))
    for number, (match, after) in enumerate(itertools.pairwise([*found, None])):
        assert match is not None
        answer = text[match.start() : after.start() if after else len(text)].strip()
        if len(answer) in _ANSWER_CHARS and hash(answer) not in seen:
            seen.add(hash(answer))
            question = _QUESTIONS[(len(answer) + number) % len(_QUESTIONS)].format(match[1], module)
            yield _turn(question, answer)


def _of_sources(folders: list[Path], rng: random.Random) -> Iterator[Turns]:
    """Conversations within a file, over the Python files of `folders`."""
    places = {path: folder for folder in folders for path in folder.rglob("*.py")}  # site-packages may lie in stdlib
    paths = sorted(places)
    rng.shuffle(paths)
    seen: set[int] = set()
    for path in paths:
        module = ".".join(path.relative_to(places[path]).with_suffix("").parts)
        yield from _joined(_definitions(path, module, seen), rng)


def _passages(document: str, rng: random.Random) -> Iterator[Turns]:
    """The lines of a page, some at a time."""
    title, passage, wanted = "", "", rng.randint(*_PASSAGE_CHARS)
    for number, line in enumerate(document.splitlines(keepends=True)):
        title = title or line.strip()[:60]
        passage += line
        if len(passage) >= wanted:
            question = _NEXT[0 if not number else number % len(_NEXT)].format(title)
            yield _turn(question, passage.strip())
            title, passage, wanted = "", "", rng.randint(*_PASSAGE_CHARS)


def _of_pages(documents: list[str], rng: random.Random) -> Iterator[Turns]:
    rng.shuffle(documents)
    for document in documents:
        yield from _joined(_passages(document, rng), rng)


def _of_demos(folder: Path, rng: random.Random) -> Iterator[Turns]:
    questions: dict[str, str] = {}  # by answer, so that none comes twice
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        for row in json.loads((folder / f"{name}.json").read_text("utf-8")):
            questions[row["output"]] = f"{row['instruction']}\n{row['input']}".strip()
    for name in ("dpo_en_demo", "dpo_zh_demo"):
        for row in json.loads((folder / f"{name}.json").read_text("utf-8")):
            if len(row["conversations"]) == 1:
                questions[row["chosen"]["value"]] = row["conversations"][0]["value"]
    pairs = list(questions.items())
    rng.shuffle(pairs)
    return _joined((_turn(question, answer) for answer, question in pairs), rng)


def chats(num_rows: int, demos: Path, pages: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """At most `num_rows` rows `{"messages": [...]}`; the same ones for the same files. Ends when the sources do.

    demos: LLaMA-Factory's data. pages: documents by kind, as `texts.corpora` gives them.
    """
    rng = random.Random(0)
    installed = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    documents = [page for kind, found in pages.items() if kind not in ("code", "json-lines") for page in found]
    kinds = {
        "sources": _of_sources(installed, rng),
        "pages": _of_pages(documents, rng),
        "demos": _of_demos(demos, rng),
    }
    while kinds and num_rows:
        [kind] = rng.choices(list(kinds), [_SHARES[kind] for kind in kinds])
        chat = next(kinds[kind], None)
        if chat is None:
            del kinds[kind]
            continue
        yield {"messages": chat}
        num_rows -= 1


def write(path: Path, rows: Iterator[dict[str, Any]]) -> tuple[int, float]:
    """Writes JSON Lines; returns rows and MB."""
    count = size = 0
    with path.open("wb") as file:
        for row in rows:
            size += file.write(json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n")
            count += 1
    return count, size / 1e6
