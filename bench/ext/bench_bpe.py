"""How fast does text become ids, against the tokenizers people use, on one thread and two?

Every rival reads the same texts and gives flat ids where it can: ours, gigatoken, tokie and fastokens one uint32 array,
`tokenizers` its encodings (`encode_batch_fast`, which keeps no offsets), tiktoken lists. `texts` says what is read:
megabytes that no one has seen twice. Two rows a text: *new*, where each round has a fresh tokenizer and reads all of it
once, as a job does; and *again*, where all remember words of the rounds before. Caches are built during the first read,
on the clock. The package and tiktoken read the first two megabytes only. For one thread everything is kept on one
processor, since tokie and fastokens have thread pools of their own.
"""

import contextlib
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import texts
from harness import Case, Rival

from postmill import _native

PACKAGES = ("tokenizers", "gigatoken", "tokie", "fastokens", "tiktoken")
SLOW_BYTES = 2_000_000
PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


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


class Maker(NamedTuple):
    """One of those that give flat ids."""

    make: Callable[[], Any]
    encode: Callable[[Any, list[str], int], Any]
    """Tokenizer, texts and threads -> what it gives."""
    flat: Callable[[Any], np.ndarray]
    """What it gives -> ids."""


def makers(path: Path) -> dict[str, Maker]:
    """Ours and those that are installed."""
    found = {
        "postmill": Maker(
            lambda: _native.Tokenizer(path.read_bytes()),
            lambda made, texts, threads: made.encode_batch(texts, threads=threads),
            lambda given: np.asarray(given.ids),
        )
    }
    if importlib.util.find_spec("gigatoken"):
        gigatoken = importlib.import_module("gigatoken")
        found["gigatoken"] = Maker(
            lambda: gigatoken.Tokenizer(str(path)),
            lambda made, texts, threads: made.encode_batch(texts, parallel=threads > 1),
            lambda given: np.concatenate([np.asarray(ids, np.uint32) for ids in given]),
        )
    if importlib.util.find_spec("tokie"):
        tokie = importlib.import_module("tokie")
        found["tokie"] = Maker(
            lambda: tokie.Tokenizer.from_json(str(path)),
            lambda made, texts, threads: made.encode_batch_flat(texts, add_special_tokens=False),
            lambda given: given[0],
        )
    if importlib.util.find_spec("fastokens"):
        fastokens = importlib.import_module("fastokens")
        found["fastokens"] = Maker(
            lambda: fastokens.Tokenizer.from_file(str(path)),
            lambda made, texts, threads: made.encode_batch_flat(texts),
            lambda given: np.frombuffer(given[0], np.uint32),
        )
    return found


def keep_on(processors: set[int]) -> None:
    """Let all threads of this process run on these only, where the system can."""
    for thread in Path("/proc/self/task").iterdir() if processors else ():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), processors)


def fast_rivals(documents: list[str], path: Path, threads: int, *, new: bool) -> list[Rival]:
    """Those that give flat ids; `new` gives each round a tokenizer that has read one word."""
    amount = megabytes(documents)

    def rival(name: str, maker: Maker) -> Rival:
        kept: list[Any] = []

        def prepare() -> None:
            keep_on(PROCESSORS)  # a pool that starts now must not take one processor for all there are
            if new or not kept:
                kept[:] = [maker.make()]
                maker.encode(kept[0], ["word"] * 2, threads)
            keep_on(set(sorted(PROCESSORS)[:threads]))

        def run() -> Any:
            given = maker.encode(kept[0], documents, threads)
            keep_on(PROCESSORS)
            return given

        return Rival(name, run, amount, prepare=prepare)

    return [rival(name, maker) for name, maker in makers(path).items()]


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
    """Our ids against the package's on the first part; says of the others whether theirs are ours on all of it."""
    import tokenizers

    ids = {name: maker.flat(maker.encode(maker.make(), documents, threads)) for name, maker in makers(path).items()}
    ours = ids.pop("postmill")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    some = theirs.encode_batch_fast(head(documents, SLOW_BYTES), add_special_tokens=False)
    expected = np.concatenate([np.asarray(e.ids, np.uint32) for e in some])
    assert np.array_equal(ours[: len(expected)], expected), "postmill differs from tokenizers"
    facts: dict[str, Any] = {"megabytes": round(megabytes(documents), 2), "tokens_compared": len(expected)}
    return facts | {f"{name}_equal": np.array_equal(ours, others) for name, others in ids.items()}


def cases(smoke: bool) -> Iterator[Case]:
    import assets

    tokenizer = assets.qwen3_tokenizer()
    corpora = texts.corpora(smoke=smoke) if tokenizer else {}
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
