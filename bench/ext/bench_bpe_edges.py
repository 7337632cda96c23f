"""Where tokenizers are weak: a megabyte without a place to cut, and a process that only encodes one megabyte.

The adversarial texts are read again and again; gigatoken's rates there are a long word it remembers from the round
before. The cold case is a process of its own that loads the tokenizer, encodes and leaves.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

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


def adversarial() -> dict[str, str]:
    """One megabyte each, without a place to cut."""
    letters = np.random.default_rng(0).integers(97, 123, 1_000_000, np.uint8).tobytes().decode()
    han = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x5E00, 333_333)))
    return {"a": "a" * 1_000_000, "spaces": " " * 1_000_000, "random-letters": letters, "random-han": han}


def adversarial_case(name: str, text: str, path: Path) -> Case:
    ours = _native.Tokenizer(path.read_bytes())
    amount = len(text.encode()) / 1e6
    rivals = [Rival("postmill", lambda: ours.encode_batch([text]), amount)]
    try:
        import gigatoken

        giga = gigatoken.Tokenizer(str(path))
        rivals.append(Rival("gigatoken", lambda: giga.encode_batch([text], parallel=False), amount))
    except ImportError:
        pass
    return Case(f"adversarial-{name}", f"{name}, 1 thread, MB/s", "MB", rivals, None, 3, PACKAGES)


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

    import assets

    tokenizer = assets.qwen3_tokenizer()
    english = texts.corpora().get("english") if tokenizer else None
    if tokenizer is None or english is None:
        yield Case("edges", "", "MB", [], skip="the tokenizer or the texts could not be fetched")
        return
    path = tokenizer / "tokenizer.json"
    for name, text in adversarial().items():
        yield adversarial_case(name, text[:: 50 if smoke else 1], path)
    with tempfile.TemporaryDirectory() as work:
        yield cold_case(path, "\n".join(english[:80]), Path(work))
