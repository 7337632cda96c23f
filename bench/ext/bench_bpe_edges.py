"""Where tokenizers are weak: a megabyte without a place to cut, and a process that only encodes one megabyte.

Each round of an adversarial case has fresh tokenizers, on one thread. Its rival *english* is ours on a megabyte of
English that nobody has seen: the time per byte that is normal. The cold case is a process of its own that loads the
tokenizer, encodes and leaves.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import texts
from harness import Case, Rival

from postmill import _native

PACKAGES = ("tokenizers", "gigatoken")
COLD = {
    "postmill": "from postmill import _native as n; n.Tokenizer(open({t!r}, 'rb').read()).encode(open({f!r}).read())",
    "gigatoken": "import gigatoken as g; g.Tokenizer({t!r}).encode(open({f!r}).read())",
    "tokenizers": "import tokenizers as t; t.Tokenizer.from_file({t!r}).encode_batch_fast([open({f!r}).read()])",
}


def adversarial_case(name: str, text: str, english: str, path: Path) -> Case:
    """Ours on the text, ours on English, and gigatoken on the text."""

    def rival(label: str, make: Callable[[], Any], encode: Callable[[Any, str], object], read: str) -> Rival:
        kept: list[Any] = []

        def prepare() -> None:
            kept[:] = [make()]
            encode(kept[0], "word")

        return Rival(label, lambda: encode(kept[0], read), len(read.encode()) / 1e6, prepare=prepare)

    def ours() -> Any:
        return _native.Tokenizer(path.read_bytes())

    def check() -> dict[str, int]:
        import tokenizers

        some = text[: 20_000 // len(text[-1].encode())]
        theirs = tokenizers.Tokenizer.from_file(str(path)).encode(some, add_special_tokens=False).ids
        assert np.array_equal(np.asarray(ours().encode(some)), theirs), f"postmill differs from tokenizers on {name}"
        return {"tokens_compared": len(theirs)}

    rivals = [
        rival("postmill", ours, lambda made, read: made.encode(read), text),
        rival("english", ours, lambda made, read: made.encode(read), english),
    ]
    if importlib.util.find_spec("gigatoken"):
        gigatoken = importlib.import_module("gigatoken")
        rivals.append(
            rival(
                "gigatoken",
                lambda: gigatoken.Tokenizer(str(path)),
                lambda made, read: made.encode_batch([read], parallel=False),
                text,
            )
        )
    question = f"{name}, fresh tokenizers, 1 thread, MB/s (english: ours on English)"
    return Case(f"adversarial-{name}", question, "MB", rivals, check, 3, PACKAGES)


def cold_case(path: Path, text: str, folder: Path) -> Case:
    file = folder / "one_megabyte.txt"
    file.write_text(text.encode()[:1_000_000].decode(errors="ignore"))
    env = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    rivals = [
        Rival(name, [sys.executable, "-c", code.format(t=str(path), f=str(file))], 1.0, env=env)
        for name, code in COLD.items()
        if importlib.util.find_spec(name)
    ]
    return Case("cold-1mb", "a process that encodes 1 MB", "MB", rivals, None, 5, PACKAGES)


def cases(smoke: bool) -> Iterator[Case]:
    import tempfile

    import adversarial_text
    import assets

    tokenizer = assets.qwen3_tokenizer()
    english = texts.corpora(smoke=smoke).get("code" if smoke else "english") if tokenizer else None
    if tokenizer is None or english is None:
        yield Case("edges", "", "MB", [], skip="the tokenizer or the texts could not be fetched")
        return
    path = tokenizer / "tokenizer.json"
    new = "\n".join(english)[-1_100_000:].encode()[-1_000_000:].decode(errors="ignore")
    for name, text in adversarial_text.texts(20_000 if smoke else 1_000_000).items():
        yield adversarial_case(name, text, new, path)
    with tempfile.TemporaryDirectory() as work:
        yield cold_case(path, "\n".join(english[:80]), Path(work))
