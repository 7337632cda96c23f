"""Texts that are hard for a BPE: long stretches without a place to cut, where a word cache and a regex do not help."""

from collections.abc import Iterable

import numpy as np

LOWER = "abcdefghijklmnopqrstuvwxyz"
WORDS = (
    "the of and to in that is was he for it with as his on be at by had not are but from or have an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what "
    "its about than into them can only other time new some could these two may first then do any like my now "
    "over such our man me even most information international understanding development university government "
    "particular difference environment"
)


def _range(first: int, last: int) -> list[str]:
    return [chr(c) for c in range(first, last + 1)]


def texts(num_bytes: int, seed: int = 0) -> dict[str, str]:
    """By name, texts of about `num_bytes` bytes of UTF-8 each."""
    random = np.random.default_rng(seed)

    def drawn(alphabet: Iterable[str]) -> str:
        letters = list(alphabet)
        size = sum(len(letter.encode()) for letter in letters) / len(letters)
        return "".join(letters[i] for i in random.integers(0, len(letters), int(num_bytes / size)))

    def repeated(text: str) -> str:
        return (text * (num_bytes // len(text.encode()) + 1))[: num_bytes // len(text[0].encode())]

    runs = "".join(letter * n for letter, n in zip("ab" * num_bytes, random.geometric(0.05, num_bytes), strict=False))
    return {
        "one-letter": repeated("a"),
        "spaces": repeated(" "),
        "line-breaks": repeated("\n"),
        "alphabet-in-turn": repeated(LOWER),
        "letters": drawn(LOWER),
        "letters-of-both-cases": drawn(LOWER + LOWER.upper()),
        "two-letters": drawn("ab"),
        "runs-of-two-letters": runs[:num_bytes],
        "cascade": repeated("a" * 63 + "b"),
        "words-without-spaces": drawn(WORDS.split()),
        "signs": drawn('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'),
        "white-space": drawn(" \t\n"),
        "digits": drawn("0123456789"),
        "mixed-classes": drawn(LOWER + "0123456789 \n.,'é中и"),
        "accents": drawn([*LOWER, *_range(0xE0, 0xF6)]),
        "cyrillic": drawn(_range(0x430, 0x44F)),
        "thai": drawn(_range(0xE01, 0xE2E)),
        "han": drawn(_range(0x4E00, 0x5DFF)),
        "kana": drawn(_range(0x3041, 0x3096)),
        "hangul": drawn(_range(0xAC00, 0xD7A3)),
        "combining-marks": "a" + drawn(_range(0x300, 0x33F)),
        "emoji": drawn(_range(0x1F300, 0x1F5FF)),
        "any-characters": drawn(c for c in _range(1, 0xFFFF) if not 0xD800 <= ord(c) < 0xE000),
    }
