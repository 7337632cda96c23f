"""How fast do SentencePiece families (Llama 2, Gemma 3) become ids, against the `tokenizers` package? One thread.

Chats of several turns, written as each family writes them, 120 MB. First every row is compared: ids of ours and of the
package must be equal. Then the clock: *new*, where each round has a fresh tokenizer and reads all rows once, as a job
does; and *again*, where it remembers the words of the rounds before. The package remembers nothing of long texts and
reads every fortieth row only. A process of its own that reads all rows in blocks says what memory it takes.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import assets
import conversations
import numpy as np
import texts
from harness import Case, Rival

from postmill import _native

BYTES = 120_000_000
SMOKE_BYTES = 150_000
SHARE = 40
BLOCK = 2_000
PEAK = """
import json, re, sys
from postmill import _native
tokenizer = _native.Tokenizer(open(sys.argv[1], "rb").read())
block = []
for line in open(sys.argv[2]):
    block.append(json.loads(line))
    if len(block) == 500:
        tokenizer.encode_batch(block)
        block = []
tokenizer.encode_batch(block)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""

Turns = list[dict[str, str]]


def gemma(turns: Turns) -> str:
    roles = {"user": "user", "assistant": "model"}
    said = (f"<start_of_turn>{roles[turn['role']]}\n{turn['content'].strip()}<end_of_turn>\n" for turn in turns)
    return "<bos>" + "".join(said)


def llama(turns: Turns) -> str:
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return "".join(
        f"<s>[INST] {asked['content'].strip()} [/INST] {said['content'].strip()} </s>" for asked, said in pairs
    )


FAMILIES: dict[str, Callable[[Turns], str]] = {"gemma-3": gemma, "llama-2": llama}


def rows(family: str, demos: Path, smoke: bool) -> list[str]:
    """Chats as text, as many as make the megabytes wanted."""
    found: list[str] = []
    size = 0
    for chat in conversations.chats(10**9, demos, texts.corpora(smoke=smoke)):
        if size >= (SMOKE_BYTES if smoke else BYTES):
            break
        # what cannot be written as UTF-8 is no text
        found.append(FAMILIES[family](chat["messages"]).encode(errors="replace").decode())
        size += len(found[-1].encode())
    return found


def megabytes(some: list[str]) -> float:
    return sum(len(text.encode()) for text in some) / 1e6


def compare(every: list[str], path: Path) -> dict[str, Any]:
    """Every row's ids, ours and the package's."""
    import tokenizers

    ours, theirs = _native.Tokenizer(path.read_bytes()), tokenizers.Tokenizer.from_file(str(path))
    assert ours.engine.startswith("postmill char bpe"), ours.engine
    tokens = 0
    for first in range(0, len(every), BLOCK):
        block = every[first : first + BLOCK]
        made = ours.encode_batch(block)
        for number, given in enumerate(theirs.encode_batch_fast(block, add_special_tokens=False)):
            ids = np.asarray(given.ids, np.uint32)
            assert np.array_equal(np.asarray(made[number]), ids), f"row {first + number} differs"
            tokens += len(ids)
    return {"rows_compared": len(every), "tokens_compared": tokens, "megabytes": round(megabytes(every), 1)}


def peak_mib(every: list[str], path: Path) -> float:
    """What a process takes that reads all rows, its Python included."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "rows.jsonl"
        with file.open("w") as out:
            out.writelines(json.dumps(text) + "\n" for text in every)
        argv = [sys.executable, "-c", PEAK, str(path), str(file)]
        return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def reading(name: str, every: list[str], path: Path, is_new: bool) -> Case:
    import tokenizers

    ours, theirs = _native.Tokenizer(path.read_bytes()), tokenizers.Tokenizer.from_file(str(path))
    some = every[::SHARE]

    def prepare() -> None:
        nonlocal ours
        if is_new:
            ours = _native.Tokenizer(path.read_bytes())
            ours.encode("word")

    def facts() -> dict[str, Any]:
        return compare(every, path) | {"peak_mib": round(peak_mib(every, path), 1)} if is_new else {}

    rivals = [
        Rival("postmill", lambda: ours.encode_batch(every), megabytes(every), prepare=prepare),
        Rival(
            "tokenizers",
            lambda: [theirs.encode_batch_fast([text], add_special_tokens=False) for text in some],
            megabytes(some),
            f"every {SHARE}th row",
        ),
    ]
    kind = "new" if is_new else "again"
    return Case(f"{name}-{kind}", f"{name}, chats, {kind}, one thread", "MB", rivals, facts, 3, ("tokenizers",))


def cases(smoke: bool) -> Iterator[Case]:
    demos = assets.llamafactory_data()
    for family in FAMILIES:
        path = assets.tokenizer_json(family) if demos else None
        if demos is None or path is None:
            yield Case(family, "", "MB", [], skip="the tokenizer or the data cannot be fetched here")
            continue
        every = rows(family, demos, smoke)
        yield from (reading(family, every, path, is_new) for is_new in (True, False))
