"""How fast does text become ids, against the tokenizers people use, on one thread and two?

Every rival reads the same texts and gives flat ids where it can: ours and gigatoken one uint32 array, `tokenizers` its
encodings (`encode_batch_fast`, which keeps no offsets), tiktoken lists. `texts` says what is read: megabytes that no
one has seen twice. Two rows a text: *new*, where each round has a fresh tokenizer and reads all of it once, as a job
does; and *again*, where all remember words of the rounds before. gigatoken 0.10 and ours build their caches during the
first read, on the clock. The package and tiktoken read the first two megabytes only.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import texts
from harness import Case, Rival

from postmill import _native

PACKAGES = ("tokenizers", "gigatoken", "tiktoken")
SLOW_BYTES = 2_000_000


def qwen_ranks(path: Path) -> Any:
    """Qwen's own rank file is not here: tiktoken gets the same ranks from the tokenizer's vocabulary and pattern."""
    import tiktoken
    from tiktoken_json import byte_letters

    file = json.loads(path.read_text())
    table = {letter: byte for byte, letter in enumerate(byte_letters())}
    ranks = {bytes(table[c] for c in token): rank for token, rank in file["model"]["vocab"].items()}
    pattern = file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    return tiktoken.Encoding("qwen3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def head(documents: list[str], most: int) -> list[str]:
    """The first documents, of `most` bytes or a little more."""
    out, size = [], 0
    for document in documents:
        if size >= most:
            break
        out.append(document)
        size += len(document.encode())
    return out


def megabytes(documents: list[str]) -> float:
    return sum(len(document.encode()) for document in documents) / 1e6


def fast_rivals(documents: list[str], path: Path, threads: int, *, new: bool) -> list[Rival]:
    """Ours and gigatoken; `new` gives each round a tokenizer that has read one word."""
    amount = megabytes(documents)
    makers: dict[str, Callable[[], Any]] = {"postmill": lambda: _native.Tokenizer(path.read_bytes())}
    calls: dict[str, Callable[[Any], Any]] = {"postmill": lambda made: made.encode_batch(documents, threads=threads)}
    try:
        import gigatoken

        makers["gigatoken"] = lambda: gigatoken.Tokenizer(str(path))
        calls["gigatoken"] = lambda made: made.encode_batch(documents, parallel=threads > 1)
    except ImportError:
        pass

    def rival(name: str) -> Rival:
        kept: list[Any] = []

        def prepare() -> None:
            if new or not kept:
                kept[:] = [makers[name]()]
                kept[0].encode("word")

        return Rival(name, lambda: calls[name](kept[0]), amount, prepare=prepare)

    return [rival(name) for name in makers]


def slow_rivals(documents: list[str], path: Path, threads: int) -> list[Rival]:
    import tokenizers

    some = head(documents, SLOW_BYTES)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    tik = qwen_ranks(path)
    amount, note = megabytes(some), "one thread" if threads == 1 else "its own threads"
    return [
        Rival("tokenizers", lambda: theirs.encode_batch_fast(some, add_special_tokens=False), amount, note),
        Rival("tiktoken", lambda: tik.encode_ordinary_batch(some, num_threads=threads), amount),
    ]


def check(documents: list[str], path: Path, threads: int) -> dict[str, Any]:
    """Our ids against the package's on the first part; says whether gigatoken's are the same on all."""
    import tokenizers

    ours = _native.Tokenizer(path.read_bytes())
    ids = np.asarray(ours.encode_batch(documents, threads=threads).ids)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    some = theirs.encode_batch_fast(head(documents, SLOW_BYTES), add_special_tokens=False)
    expected = np.concatenate([np.asarray(e.ids, np.uint32) for e in some])
    assert np.array_equal(ids[: len(expected)], expected), "postmill differs from tokenizers"
    facts: dict[str, Any] = {"megabytes": round(megabytes(documents), 2), "tokens_compared": len(expected)}
    try:
        import gigatoken

        giga = gigatoken.Tokenizer(str(path))
        facts["gigatoken_equal"] = np.array_equal(ids, np.concatenate([giga.encode(text) for text in documents]))
    except ImportError:
        pass
    return facts


def cases(smoke: bool) -> Iterator[Case]:
    import assets

    tokenizer = assets.qwen3_tokenizer()
    corpora = texts.corpora() if tokenizer else {}
    if tokenizer is None or not corpora:
        yield Case("text", "", "MB", [], skip="the tokenizer or the texts could not be fetched")
        return
    path = tokenizer / "tokenizer.json"
    for name, every in corpora.items():
        documents = every[:: max(1, len(every) // 3)] if smoke else every
        for threads in (1, 2):
            os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
            for new in (True, False):
                rivals = fast_rivals(documents, path, threads, new=new)
                if not new and threads == 1:
                    rivals += slow_rivals(documents, path, threads)
                label = f"{name}-{'new' if new else 'again'}-{threads}t"
                question = f"{name}, {'new text' if new else 'text seen before'}, {threads} thread(s), MB/s"
                facts = (lambda d=documents, t=threads: check(d, path, t)) if new and threads == 1 else None
                yield Case(label, question, "MB", rivals, facts, 3, PACKAGES)
