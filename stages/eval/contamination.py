"""Were the items of a benchmark trained on? Runs of words that an item shares with training text.

Words are lower-case runs of letters and digits, and single characters of Chinese and Japanese; 13 in a row are chance
in no two texts (Brown et al., <https://arxiv.org/abs/2005.14165>, appendix C). Only the items' runs are kept in memory;
training text is read once, whatever its size.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

CHARACTERS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Chinese and Japanese characters, for a class of a regex: each is a word."""
_WORD = re.compile(rf"[{CHARACTERS}]|[^\W_{CHARACTERS}]+")
SHORTEST = 8
"""Words of the shortest text that is looked for whole, where it has fewer than a run."""


class Overlap(msgspec.Struct, frozen=True, kw_only=True):
    """What an item shares with training text."""

    number: int
    """Of its row, from 0."""
    num_words: int
    share: float | None
    """Of its words, those in a run that was found. None: its texts are too short to tell."""
    longest: int
    """Words of the longest run that was found, in one piece."""
    place: str
    """Where the first run was found."""


def words(text: str) -> list[str]:
    """The words that are compared."""
    return _WORD.findall(text.lower())


def texts_of(value: Any) -> list[str]:
    """Every text in a row, however deep."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for each in value for text in texts_of(each)] if isinstance(value, list) else []


class Finder:
    """Items, of which training text is searched for runs of `size` words."""

    def __init__(self, items: Iterable[list[str]], size: int) -> None:
        """items: the texts of each, which are never joined: a run lies in one text."""
        self._texts = [
            [words_of_text for text in texts if len(words_of_text := words(text)) >= min(SHORTEST, size)]
            for texts in items
        ]
        self._size = size
        self._places: dict[tuple[str, ...], list[tuple[int, int, int]]] = {}
        """Run of words -> where it is: item, text, first word."""
        self._covered = [[bytearray(len(text)) for text in texts] for texts in self._texts]
        self._first = [""] * len(self._texts)
        for item, texts in enumerate(self._texts):
            for at, text in enumerate(texts):
                length = min(size, len(text))
                for start in range(len(text) - length + 1):
                    self._places.setdefault(tuple(text[start : start + length]), []).append((item, at, start))
        self._lengths = sorted({len(run) for run in self._places})

    def search(self, text: str, place: str) -> None:
        """Mark what a training text has of the items. place: what it is called."""
        text_words = words(text)
        for length in self._lengths:
            for start in range(len(text_words) - length + 1):
                for item, at, first in self._places.get(tuple(text_words[start : start + length]), ()):
                    self._covered[item][at][first : first + length] = b"\1" * length
                    self._first[item] = self._first[item] or place

    def overlaps(self) -> list[Overlap]:
        """Of each item, in order."""
        overlaps = []
        for number, covered in enumerate(self._covered):
            total = sum(map(len, covered))
            runs = [len(run) for text in covered for run in bytes(text).split(b"\0")]
            share = sum(sum(text) for text in covered) / total if total else None
            overlaps.append(
                Overlap(
                    number=number,
                    num_words=total,
                    share=share,
                    longest=max(runs, default=0),
                    place=self._first[number],
                )
            )
        return overlaps
