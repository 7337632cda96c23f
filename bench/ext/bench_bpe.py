"""How fast does text become ids, against the tokenizers people use, on one thread and two?

Every rival reads the same texts and gives flat ids where it can: ours and gigatoken one uint32 array, `tokenizers` its
encodings (`encode_batch_fast`, which keeps no offsets), tiktoken lists. Real text of LLaMA-Factory's demo sets
(English, Chinese, chats as JSON Lines) and the sources of transformers. All rivals remember words between rounds; text
that is new is the cold case: a process of its own that loads the tokenizer, encodes one megabyte and leaves.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Rival

from postmill import _native

PACKAGES = ("tokenizers", "gigatoken", "tiktoken")
COLD = {
    "postmill": "from postmill import _native as n; n.Tokenizer(open({t!r}, 'rb').read()).encode(open({f!r}).read())",
    "gigatoken": "import gigatoken as g; g.Tokenizer({t!r}).encode(open({f!r}).read())",
    "tokenizers": "import tokenizers as t; t.Tokenizer.from_file({t!r}).encode_batch_fast([open({f!r}).read()])",
}


def strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def corpora(data: Path) -> dict[str, list[str]]:
    """Documents by kind."""
    import transformers

    def demo(*names: str) -> list[Any]:
        return [row for name in names for row in json.loads((data / f"{name}.json").read_text())]

    chats = demo("alpaca_en_demo", "glaive_toolcall_zh_demo")
    sources = sorted(Path(transformers.__file__).parent.rglob("modeling_*.py"))[::8]
    return {
        "english": [t for t in strings(demo("alpaca_en_demo", "dpo_en_demo", "kto_en_demo")) if len(t) > 40],
        "chinese": [t for t in strings(demo("alpaca_zh_demo", "dpo_zh_demo")) if len(t) > 10],
        "code": [path.read_text() for path in sources],
        "json-lines": [json.dumps(row, ensure_ascii=False) for row in chats],
    }


def adversarial() -> dict[str, str]:
    """One megabyte each, without a place to cut."""
    letters = np.random.default_rng(0).integers(97, 123, 1_000_000, np.uint8).tobytes().decode()
    han = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x5E00, 333_333)))
    return {"a": "a" * 1_000_000, "spaces": " " * 1_000_000, "random-letters": letters, "random-han": han}


def qwen_ranks(path: Path) -> Any:
    """Qwen's own rank file is not here: tiktoken gets the same ranks from the tokenizer's vocabulary and pattern."""
    import tiktoken
    from tokenizers.pre_tokenizers import ByteLevel

    file = json.loads(path.read_text())
    order = sorted(ByteLevel.alphabet())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    table |= dict(zip((c for c in order if ord(c) >= 256), (b for b in range(256) if b not in printable), strict=True))
    ranks = {bytes(table[c] for c in token): rank for token, rank in file["model"]["vocab"].items()}
    pattern = file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    return tiktoken.Encoding("qwen3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def case(name: str, texts: list[str], path: Path, threads: int, *, slow_rivals: bool = True) -> Case:
    import tokenizers

    ours = _native.Tokenizer(path.read_bytes())
    theirs = tokenizers.Tokenizer.from_file(str(path))

    def plain(some: list[str]) -> Any:
        return theirs.encode_batch_fast(some, add_special_tokens=False)

    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ids: dict[str, Callable[[], Any]] = {"postmill": lambda: np.asarray(ours.encode_batch(texts, threads=threads).ids)}
    rivals = [Rival("postmill", lambda: ours.encode_batch(texts, threads=threads), megabytes)]
    try:
        import gigatoken

        giga = gigatoken.Tokenizer(str(path))
        rivals.append(Rival("gigatoken", lambda: giga.encode_batch(texts, parallel=threads > 1), megabytes))
        ids["gigatoken"] = lambda: np.concatenate([giga.encode(text) for text in texts])
    except ImportError:
        pass
    few = texts if slow_rivals else texts[:0]
    if few:
        amount, note = megabytes, "one thread" if threads == 1 else "its own threads"
        rivals.append(Rival("tokenizers", lambda: plain(few), amount, note))
        tik = qwen_ranks(path)
        rivals.append(Rival("tiktoken", lambda: tik.encode_ordinary_batch(few, num_threads=threads), amount))

    def check() -> dict[str, Any]:
        expected = [i for e in plain(texts) for i in e.ids] if few else None
        found = {rival: np.asarray(encode()).tolist() for rival, encode in ids.items()}
        if expected is not None:
            assert found["postmill"] == expected, "postmill differs from tokenizers"
        differ = [rival for rival, tokens in found.items() if tokens != found["postmill"]]
        return {"tokens_compared": len(found["postmill"]), "megabytes": round(megabytes, 2), "differ": differ}

    repeats = 5 if slow_rivals else 3
    question = f"{name}, {threads} thread(s), MB/s"
    return Case(f"{name}-{threads}t", question, "MB", rivals, check, repeats, PACKAGES)


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
    import os
    import tempfile

    import assets

    tokenizer, data = assets.qwen3_tokenizer(), assets.llamafactory_data()
    if tokenizer is None or data is None:
        yield Case("text", "", "MB", [], skip="the tokenizer or the texts could not be fetched")
        return
    path = tokenizer / "tokenizer.json"
    [folder] = {found.parent for found in data.rglob("alpaca_en_demo.json")}
    for threads in (1, 2):
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        for name, texts in corpora(folder).items():
            yield case(name, texts[:: 50 if smoke else 1], path, threads)
    for name, text in adversarial().items():
        yield case(f"adversarial-{name}", [text[:: 50 if smoke else 1]], path, 1, slow_rivals=False)
    with tempfile.TemporaryDirectory() as work:
        yield cold_case(path, "\n".join(corpora(folder)["english"]), Path(work))
