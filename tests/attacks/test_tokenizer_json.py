"""Tokenizer files made to hurt: each is refused with one line, or used as the `tokenizers` package would use it.

Every file goes through `postmill tokenize` as a real process with little memory and little time.
"""
# ruff: noqa: E501, PLW0108  (a table reads better with one case a line; large files are made when they are needed)

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_tokenizer import write_tokenizer

pytest.importorskip("tokenizers")

ADDRESS_SPACE = 3 * 2**30
"""Bytes. The interpreter, pyarrow and the threads' stacks take one gigabyte of addresses before any file is read."""
SECONDS = 20
ROWS = '{"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "' + "a" * 4000 + '!"}]}\n'


class Case(NamedTuple):
    """How `tokenizer.json` is made from a good one, the exit codes it may have, and words the line must have."""

    name: str
    make: Callable[[dict[str, Any]], dict[str, Any] | bytes]
    codes: int | tuple[int, ...]
    says: tuple[str, ...] = ("tokenizer.json",)


def model(**members: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Other members of the model."""
    return lambda file: file | {"model": file["model"] | members}


def part(**members: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Other parts of the file."""
    return lambda file: file | members


def vocab(**tokens: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """More tokens."""
    return lambda file: model(vocab=file["model"]["vocab"] | tokens)(file)


def merges(*pairs: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """More merges, first."""
    return lambda file: model(merges=[*pairs, *file["model"]["merges"]])(file)


def added(*contents: str, first: int = 261, **flags: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """More added tokens."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return lambda file: (
        file
        | {
            "added_tokens": file["added_tokens"]
            + [plain | {"id": first + 2 + i, "content": text} | flags for i, text in enumerate(contents)]
        }
    )


def text(old: bytes, new: bytes) -> Callable[[dict[str, Any]], bytes]:
    """Another text for the first `old`."""

    def make(file: dict[str, Any]) -> bytes:
        data = json.dumps(file).encode()
        assert old in data
        return data.replace(old, new, 1)

    return make


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
EVIL = "(a|a|a?)+$"

CASES = [
    Case("nothing", lambda f: b"", 65),
    Case("half a file", lambda f: json.dumps(f).encode()[:-200], 65),
    Case("not utf-8", text(b'"he"', b'"\xff\xfe"'), 65),
    Case("a list", lambda f: b"[]", 65),
    Case("nested 100,000 deep", lambda f: b'{"model":' + b"[" * 100_000, 65),
    Case("nested 100,000 deep in a part", text(b'"normalizer": null', b'"normalizer": ' + b'{"type":"Sequence","normalizers":[' * 100_000), 65),
    Case("a key twice", text(b'"model":', b'"model": {}, "model":'), 65),
    Case("a token twice", text(b'"he":', b'"he": 5, "he":'), 65),
    Case("an id below zero", vocab(x1=-1), 65),
    Case("an id of 2^31", vocab(x1=2**31), 65),
    Case("an id of 2^32 - 1", vocab(x1=2**32 - 1), 65),
    Case("an id of 2^64", vocab(x1=2**64), 65),
    Case("an id that is no integer", vocab(x1=1.5), 65),
    Case("an id that is text", vocab(x1="7"), 65),
    Case("an id of a billion", vocab(x1=10**9), 65),
    Case("an id twice", vocab(x1=7), 0),
    Case("no vocabulary", model(vocab={}), 65),
    Case("no vocabulary and no merges", model(vocab={}, merges=[]), 65, ("nothing",)),
    Case("a vocabulary that is a list", model(vocab=[]), 65),
    Case("a merge of absent tokens", merges(["nobody", "knows"]), 65),
    Case("a merge that makes an absent token", merges(["q", "q"]), 65),
    Case("a merge of three", merges(["h", "e", "r"]), 65),
    Case("a merge of one", merges(["h"]), 65),
    Case("a merge of a number", merges(7), 65),
    Case("a merge twice", merges(["h", "e"]), 0),
    Case("merges in a circle", lambda f: merges(["a", "b"], ["ab", ""], ["", "ab"])(vocab(**{"ab": 261, "": 262})(f)), 0),
    Case("a million equal merges", lambda f: merges(*[["h", "e"]] * 1_000_000)(f), 0),
    Case("a token of 30 megabytes", lambda f: vocab(**{"x" * 30_000_000: 261})(f), 0),
    Case("an added token of 30 megabytes", added("x" * 30_000_000), (0, 65)),
    Case("a hundred thousand added tokens", added(*(f"<|{i}|>" for i in range(100_000))), 0),
    Case("an added token with an id of 2^31", added("<x>", id=2**31), 65),
    Case("an added token with an id below zero", added("<x>", id=-1), 65),
    Case("an added token that is empty", added(""), 0),
    Case("an added token twice", added("<x>", "<x>"), 0),
    Case("an added token of white space that strips", added(" ", "a", lstrip=True, rstrip=True), 0),
    Case("an unknown model", model(type="Magic"), 65),
    Case("a prefix longer than the merged token", lambda f: merges(["h", "e"])(model(continuing_subword_prefix="#" * 50)(f)), 65),
    Case("a prefix that cuts a character", lambda f: merges(["h", "é"])(model(continuing_subword_prefix="#")(vocab(**{"é": 261})(f))), 65),
    Case("dropout of two", model(dropout=2.0), 65),
    Case("an unknown token that is none", model(unk_token="<none>"), 0),
    Case("a regex that does not compile", part(pre_tokenizer=split("(")), 65),
    Case("a regex that takes for ever", part(pre_tokenizer=split(EVIL)), 65, ("tokenizer",)),
    Case("a normalizer's regex that takes for ever", part(normalizer={"type": "Replace", "pattern": {"Regex": EVIL}, "content": ""}), 65, ("tokenizer",)),
    Case("a regex that matches nothing everywhere", part(pre_tokenizer=split("x*")), 0),
    Case("a normalizer that grows", part(normalizer={"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}] * 3}), 65, ("tokenizer",)),
    Case("a charsmap that is none", part(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), 65),
    Case("a charsmap of noise", part(normalizer={"type": "Precompiled", "precompiled_charsmap": "CAAAAP////////////8="}), 65, ("tokenizer",)),
    Case("unigram without tokens", part(model=UNIGRAM | {"vocab": []}), 65),
    Case("unigram with an unknown id out of range", part(model=UNIGRAM | {"unk_id": 10**6}), 65),
    Case("unigram with no unknown id", part(model=UNIGRAM | {"unk_id": None}), 2, ("tokenizer",)),
    Case("unigram with endless scores", text(b'"model":', b'"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 1e999]]}, "_":'), 65),
    Case("word pieces without an unknown token", part(model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 10**12}), 2, ("tokenizer",)),
    Case("a post-processor of absent tokens", part(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": [], "special_tokens": {}}), 65),
]  # fmt: skip


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def tokenize(folder: Path) -> subprocess.CompletedProcess[str]:
    """`postmill tokenize` on the rows and `base/` of `folder`."""
    argv = [sys.executable, "-m", "postmill.cli.main", "tokenize", "in.jsonl", "-m", "base", "-o", "out"]
    return subprocess.run(
        argv, cwd=folder, check=False, capture_output=True, text=True, timeout=SECONDS, preexec_fn=_limits
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_hostile_tokenizer_is_one_line(case: Case, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(ROWS)
    path = write_tokenizer(tmp_path / "base") / "tokenizer.json"
    made = case.make(json.loads(path.read_bytes()))
    path.write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())
    start = time.monotonic()
    done = tokenize(tmp_path)
    said = f"exit {done.returncode} after {time.monotonic() - start:.1f} s: {done.stderr[-2000:]}"
    assert done.returncode in (case.codes if isinstance(case.codes, tuple) else (case.codes,)), said
    assert "panicked" not in done.stderr, said
    assert "Traceback" not in done.stderr, said
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, said
        assert len(lines[0]) < 1000, said
        for word in case.says:
            assert word in lines[0], said
        assert not (tmp_path / "out").exists()
