"""Sixty bad inputs: each is refused with one line that names the place, the right code, and nothing left behind."""
# ruff: noqa: E501  (a table reads better with one case a line)

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import token_tables
from tiny_model import write_model
from tiny_tokenizer import write_tokenizer

from postmill.cli.main import _guarded


class Case(NamedTuple):
    """What is put on disk, what is run there, the exit code, and words the line must have."""

    name: str
    prepare: Callable[[Path], None]
    argv: str
    code: int
    says: tuple[str, ...]


def rows(*lines: str | bytes) -> Callable[[Path], None]:
    """`in.jsonl` of these lines, and the tokenizer `base/`."""

    def prepare(folder: Path) -> None:
        data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
        (folder / "in.jsonl").write_bytes(data)
        write_tokenizer(folder / "base")

    return prepare


def chat(content: str = "hi") -> str:
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": content}]
    return json.dumps({"messages": turns})


GOOD = chat()
TOKENIZE = "tokenize in.jsonl -m base -o out"
PLACE = "in.jsonl:2"

TOKENIZE_CASES = [
    Case("broken json", rows(GOOD, '{"messages": [}'), TOKENIZE, 65, (PLACE,)),
    Case("cut last line", rows(GOOD, '{"messages": [{"role": "us'), TOKENIZE, 65, (PLACE, "ends inside")),
    Case("not utf-8", rows(GOOD, b'{"messages": "\xff\xfe"}'), TOKENIZE, 65, (PLACE, "utf-8")),
    Case("lone surrogate", rows(GOOD, '{"query": "\\ud800", "response": "x"}'), TOKENIZE, 65, (PLACE, "surrogate")),
    Case("key twice", rows(GOOD, '{"query": "a", "query": "b"}'), TOKENIZE, 65, (PLACE, "query")),
    Case("nested 100,000 deep", rows(GOOD, "[" * 100_000), TOKENIZE, 65, (PLACE, "128")),
    Case("a list, not an object", rows(GOOD, "[1, 2]"), TOKENIZE, 65, (PLACE, "object")),
    Case("NaN", rows(GOOD, '{"query": "a", "response": "b", "margin": NaN}'), TOKENIZE, 65, (PLACE,)),
    Case("no known column", rows(GOOD, '{"foo": 1}'), TOKENIZE, 65, (PLACE, "foo")),
    Case("two answers", rows(GOOD, '{"query": "a", "answer": "b", "output": "c"}'), TOKENIZE, 65, (PLACE, "answer", "output")),
    Case("content is a number", rows(GOOD, '{"messages": [{"role": "user", "content": 3}]}'), TOKENIZE, 65, (PLACE, "content")),
    Case("unknown role", rows(GOOD, '{"messages": [{"role": "asistant", "content": "x"}]}'), TOKENIZE, 65, (PLACE, "asistant", "assistant")),
    Case("no role", rows(GOOD, '{"messages": [{"content": "x"}]}'), TOKENIZE, 65, (PLACE, "role")),
    Case("empty conversation", rows(GOOD, '{"messages": []}'), TOKENIZE, 65, (PLACE, "messages")),
    Case("tools are no json", rows(GOOD, '{"messages": [{"role":"user","content":"x"},{"role":"assistant","content":"y"}], "tools": "[{"}'), TOKENIZE, 65, (PLACE, "tools")),
    Case("loss is text", rows(GOOD, '{"messages": [{"role":"user","content":"x"},{"role":"assistant","content":"y","loss":"yes"}]}'), TOKENIZE, 65, (PLACE, "loss")),
    Case("margin is text", rows(GOOD, '{"query": "a", "response": "b", "rejected_response": "c", "margin": "much"}'), TOKENIZE, 65, (PLACE, "margin")),
    Case("images", rows(GOOD, '{"query": "a", "response": "b", "images": ["x.png"]}'), TOKENIZE, 65, (PLACE, "images")),
    Case("empty file", rows(), TOKENIZE, 65, ("in.jsonl",)),
    Case("only blank lines", rows("", "  ", ""), TOKENIZE, 65, ("in.jsonl",)),
    Case("a line over the limit", rows(GOOD, chat("x" * 4000)), TOKENIZE + " --max-line-bytes 2000", 65, (PLACE, "2000")),
    Case("every row too long", rows(chat("x " * 400)), TOKENIZE + " --max-length 8", 65, ("nothing",)),
    Case("dropped too many", rows(GOOD, chat("x " * 400), GOOD), TOKENIZE + " --max-length 100 --max-dropped 1%", 65, ("max-dropped",)),
    Case("nothing to train on", rows('{"messages": [{"role":"user","content":"x"},{"role":"assistant","content":"y","loss":false}]}'), TOKENIZE, 65, ("nothing",)),
    Case("no such file", rows(GOOD), "tokenize none.jsonl -m base -o out", 66, ("none.jsonl",)),
    Case("no such model", rows(GOOD), "tokenize in.jsonl -m none -o out", 66, ("none",)),
    Case("no model", rows(GOOD), "tokenize in.jsonl -o out", 2, ("-m",)),
    Case("a model without tokenizer", rows(GOOD), "tokenize in.jsonl -m . -o out", 66, ("tokenizer.json",)),
    Case("unknown strategy", rows(GOOD), TOKENIZE + " --loss-scale reakt", 2, ("reakt",)),
    Case("a choice that is none", rows(GOOD), TOKENIZE + " --truncation middle", 2, ("--truncation", "middle")),
    Case("truncation without length", rows(GOOD), TOKENIZE + " --truncation right", 2, ("max_length",)),
    Case("a text document", lambda f: (rows(GOOD)(f), (f / "in.docx").write_bytes(b"PK\x03\x04" + bytes(60)))[0], "tokenize in.docx -m base -o out", 65, ("in.docx", "zip")),
    Case("bytes of no kind", lambda f: (rows(GOOD)(f), (f / "in.dat").write_bytes(bytes(range(256))))[0], "tokenize in.dat -m base -o out", 65, ("in.dat",)),
    Case("csv with a ragged row", lambda f: (rows(GOOD)(f), (f / "in.csv").write_text('query,response\na,b\n"c,d\n'))[0], "tokenize in.csv -m base -o out", 65, ("in.csv",)),
    Case("json that is no list", lambda f: (rows(GOOD)(f), (f / "in.json").write_text("3"))[0], "tokenize in.json -m base -o out", 65, ("in.json",)),
    Case("parquet that is none", lambda f: (rows(GOOD)(f), (f / "in.parquet").write_text("PAR1"))[0], "tokenize in.parquet -m base -o out", 65, ("in.parquet",)),
    Case("a template that loops", lambda f: (rows(GOOD)(f), (f / "t.jinja").write_text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"))[0], TOKENIZE + " --chat-template t.jinja", 65, ("in.jsonl:1",)),
    Case("a template that does not parse", lambda f: (rows(GOOD)(f), (f / "t.jinja").write_text("{% for %}"))[0], TOKENIZE + " --chat-template t.jinja", 65, ("t.jinja",)),
    Case("a template that raises", lambda f: (rows(GOOD)(f), (f / "t.jinja").write_text("{{ raise_exception('roles must alternate') }}"))[0], TOKENIZE + " --chat-template t.jinja", 65, ("in.jsonl:1", "roles must alternate")),
    Case("a crafted tokenizer", lambda f: (rows(GOOD)(f), (f / "base/tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": -1}}}'))[0], TOKENIZE, 65, ("tokenizer",)),
    Case("the output is a file", lambda f: (rows(GOOD)(f), (f / "out").write_text("mine"))[0], TOKENIZE, 73, ("out",)),
]  # fmt: skip


def tokens(folder: Path) -> None:
    batches = token_tables.to_batches(token_tables.random_rows(0, 20))
    token_tables.write_tokens(folder / "tokens", batches)


def packed(folder: Path) -> None:
    """`tokens/`, `packed/` of ids below 64, and the model `base/`."""
    ids = [token_tables.row([(7 * n + k) % 60 for k in range(12)]) for n in range(9)]
    write_model(folder / "base")
    from postmill.io.model_folder import tokenizer_digest

    digests = {"tokenizer": tokenizer_digest(folder / "base")}
    token_tables.write_tokens(folder / "tokens", token_tables.to_batches(ids), digests)
    assert _quiet(f"pack {folder}/tokens -o {folder}/packed --row-tokens 24")[0] == 0


def _replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def then(first: Callable[[Path], None], second: Callable[[Path], object]) -> Callable[[Path], None]:
    def both(folder: Path) -> None:
        first(folder)
        second(folder)

    return both


PACK = "pack tokens -o out --row-tokens 64"
TRAIN = "train packed -m base -o out --steps 1 --bins-per-step 1"

LATER_CASES = [
    Case("no tokens", lambda f: None, PACK, 66, ("tokens",)),
    Case("tokens without a manifest", then(tokens, lambda f: (f / "tokens/manifest.json").unlink()), PACK, 66, ("manifest",)),
    Case("tokens of another format", then(tokens, lambda f: _replace(f / "tokens/manifest.json", b'"format": 1', b'"format": 9')), PACK, 78, ("format 9",)),
    Case("tokens cut short", then(tokens, lambda f: (f / "tokens/tokens.arrow").write_bytes(b"ARROW1")), PACK, 65, ("tokens.arrow",)),
    Case("tokens with changed bytes", then(tokens, lambda f: _replace(f / "tokens/tokens.arrow", b"\x0a\x00\x00\x00\x0b\x00\x00\x00", b"\xff\x00\x00\x00\x0b\x00\x00\x00")), PACK, 65, ("tokens.arrow",)),
    Case("a packed artifact to pack", packed, "pack packed -o out --row-tokens 64", 78, ("packed", "tokens")),
    Case("a row longer than the bin", tokens, "pack tokens -o out --row-tokens 8", 65, ("8",)),
    Case("a bin of nothing", tokens, "pack tokens -o out --row-tokens 0", 2, ("--row-tokens",)),
    Case("tokens to train", packed, "train tokens -m base -o out", 78, ("tokens", "packed")),
    Case("no such model to train", packed, "train packed -m none -o out", 66, ("none",)),
    Case("pickled weights", then(packed, lambda f: (f / "base/model.safetensors").rename(f / "base/pytorch_model.bin")), TRAIN, 77, ("pytorch_model.bin",)),
    Case("another tokenizer", then(packed, lambda f: _replace(f / "base/tokenizer.json", b'"id": 2', b'"id": 1')), TRAIN, 78, ("tokenizer",)),
    Case("a learning rate of nothing", packed, TRAIN + " --lr 0", 2, ("lr",)),
    Case("tokens moved away", then(packed, lambda f: (f / "tokens").rename(f / "elsewhere")), TRAIN, 66, ("tokens",)),
    Case("other tokens in their place", then(packed, lambda f: (shutil.rmtree(f / "tokens"), tokens(f))), TRAIN, 78, ("tokens",)),
    Case("weights cut short", then(packed, lambda f: (f / "base/model.safetensors").write_bytes((f / "base/model.safetensors").read_bytes()[:-8])), TRAIN, 65, ("model.safetensors",)),
    Case("a model to merge alone", packed, "merge base -m base -o out", 2, ("2 or more models, got 1",)),
    Case("no adapter", packed, "merge none -m base -o out", 66, ("none",)),
    Case("no questions", packed, "eval base -o out", 2, ("question",)),
    Case("questions that are no json", then(packed, lambda f: (f / "q.jsonl").write_text("who?")), "eval base --ask q.jsonl -o out", 65, ("q.jsonl:1",)),
    Case("a pattern that does not compile", then(packed, lambda f: (f / "q.jsonl").write_text('{"question": "a", "answer": "(", "score": "regex"}')), "eval base --ask q.jsonl -o out", 65, ("q.jsonl:1",)),
    Case("verify what was changed", then(tokens, lambda f: _replace(f / "tokens/ledger.arrow", b"ARROW1", b"arrow1")), "verify tokens", 65, ("ledger.arrow",)),
    Case("a row that is not there", tokens, "ledger why ffffffffffff tokens", 66, ("ffffffffffff",)),
]  # fmt: skip

CASES = TOKENIZE_CASES + LATER_CASES


def _quiet(argv: str) -> tuple[int, str]:
    errors = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        command, *rest = argv.split()
        code = _guarded(command, rest)
    return code, errors.getvalue()


def test_there_are_sixty() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_bad_input_is_named_and_refused(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case.prepare(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    code, said = _quiet(case.argv)
    assert code == case.code, said
    lines = [line for line in said.splitlines() if ": error: " in line]
    assert len(lines) == 1, said
    assert "bug of ours" not in lines[0]
    for word in case.says:
        assert word.lower() in lines[0].lower(), lines[0]
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
