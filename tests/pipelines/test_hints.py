"""Someone who only follows what messages say gets from raw rows to a served model, through more than sixty mistakes.

With `-s` each command is printed as it was in the end, with the number of messages that were followed.

`follow` stands for that person: it knows what the words of a remedy mean ("did you mean", "pass --flag VALUE", "raise
--flag", "leave it out", ...) and the few things that only the person can know, as which model is theirs. It knows no
case. A message without a remedy, or with a wrong one, fails here.
"""

import difflib
import io
import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import tiny_model
import tiny_tokenizer

from postmill.cli.main import _guarded

pytest.importorskip("torch")

OWN = {
    "-m": "base", "-o": "made", "--row-tokens": "192", "--ask": "questions.jsonl", "--scores": "ref=scores",
    "--key-file": "keys.txt", "the model it was trained on": "base", "give more": "aligned",
    "your rows": "chats.jsonl", "--max-length": "64",
}  # fmt: skip
"""What a person knows and no message can: which files are theirs."""
MOST_HINTS = 4


def run(words: list[str]) -> tuple[int, str]:
    """One command; its exit code and what it said."""
    out, said = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(said):
        code = _guarded(words[0], words[1:])
    return code, said.getvalue()


def corrected(words: list[str], meant: str) -> list[str]:
    """The command with the word, or the part of one, that is most like `meant` in its place."""
    best, where = 0.0, (0, 0)
    cut = [re.split(r"([=.:](?=\w))", word) if "=" in word else [word] for word in words]
    for number, parts in enumerate(cut):
        for place, part in enumerate(parts):
            likeness = difflib.SequenceMatcher(None, part.lower(), meant.lower()).ratio()
            if part != meant and likeness > best:
                best, where = likeness, (number, place)
    cut[where[0]][where[1]] = meant
    return ["".join(parts) for parts in cut]


def without(words: list[str], flag: str) -> list[str]:
    """The command without a flag and its value."""
    at = words.index(flag)
    end = at + 2 if at + 1 < len(words) and not words[at + 1].startswith("--") else at + 1
    return words[:at] + words[end:]


def replaced(words: list[str], flag: str, value: str) -> list[str]:
    return [*without(words, flag), flag, value]


def follow(words: list[str], message: str) -> list[str]:
    """The command as the message's last line says it should be."""
    line = message.strip().splitlines()[-1].partition(" error: ")[2]
    if meant := re.search(r"did you mean ([^?]+)\?", line):
        return corrected(words, meant[1])
    if made := re.search(r"^(\S+): kind is .*make \w+ of (.*) with `postmill ([^`]+)`", line):
        source = made[1] if made[2] == "it" else OWN[made[2]]
        return [made_of(source, made[3].split()) if word == made[1] else word for word in words]
    if bound := re.search(r"^(--[\w-]+): .*expected `\w+` [<>]= ([\d.]+)", line):
        return replaced(words, bound[1], bound[2])
    if kind := re.search(r"^(--[\w-]+): '(\D*)(\d+)\D*': expected a (whole )?number", line):
        return replaced(words, kind[1], kind[3])
    if example := re.search(r"^(--[\w-]+) .*expected NAME=PATH, as in (\S+)", line):
        return replaced(words, example[1], example[2])
    if more := re.search(r"raise (--[\w-]+)", line):
        return replaced(words, more[1], str(max(map(int, re.findall(r"\d+", line)))))
    if "leave it out" in line:
        return without(words, line.partition(":")[0])
    if flag := re.search(r"(--[\w-]+) is required", line):
        return [*words, flag[1], OWN[flag[1]]]
    if "pass the model it was trained on with -m" in line:
        return replaced(words, "-m", OWN["the model it was trained on"])
    if passed := re.search(r"pass (--?[\w-]+)(?: (-?[\w=]+))?", line):
        is_own = passed[1] in OWN
        value = OWN[passed[1]] if is_own else passed[2] or ""
        return [*words, passed[1], *([value] if value else [])]
    if listed := re.search(r"(--[\w-]+): .*there are (\w+)", line):
        return replaced(words, listed[1], listed[2])
    if "give more" in line:
        return [words[0], OWN["give more"], *words[1:]]
    raise AssertionError(f"{shlex.join(words)}: says no remedy that a person could follow: {line}")


def made_of(path: str, maker: list[str]) -> str:
    """What a stage makes of an artifact, when a message says to make it."""
    target = f"{path}-{maker[0]}"
    if not Path(target).exists():
        insist([maker[0], path, "-o", target, *maker[1:], "-q"])
    return target


def insist(words: list[str]) -> int:
    """Run a command, and what its messages make of it, until it is done; how many hints that took."""
    for hints in range(MOST_HINTS + 1):
        code, message = run(words)
        if code == 0:
            print(f"{hints} mended: {shlex.join(words)}")
            return hints
        assert hints < MOST_HINTS, f"{shlex.join(words)}: {message}"
        words = follow(words, message)
    raise AssertionError


SMALL = "--steps 1 --bins-per-step 1 --rank 2 -q"
CHAIN = f"""
tokenise chat.jsonl -m bsae -o tokens -q
pack token -o packed -q
train tokens -m base -o sft {SMALL}
merge sft -m pair-base -o tuned --parity off -q
tokenize pairs.jsonl -o pair-tokens -q -m tunde
pack pair-tokens -o pair-packed --row-tokens 8 -q
score pair-tokens -m tuned -o scores -q --top-k -2
train pair-packed -m tuned --objective dpo -o dpo {SMALL}
merge dpo -o alinged --parity of -q
quantize aligned -o small --method hqqq --parity off -q
serve small --port 99999 --dry-run
eval small -o answers --max-new-tokens 3x -q
"""
"""SFT, DPO, merge, quantize, serve, eval, with a mistake or several in each command."""
MISTAKES = """
tokenize chats.jsonl -o x
tokenize chats.jsonl -m base -o x --max-lenght 64
tokenize chats.jsonl -m base -o x --max-length 64k
tokenize chats.jsonl -m base -o x --max-length 0
tokenize chats.jsonl -m base -o x --truncation rihgt
tokenize chats.jsonl -m base -o x --for prompts
tokenize chats.jsonl -m bas -o x
tokenize folder/chats.jsnl -m base -o x
pack tokens
pack tokens -o x --row-tokens 0
pack tokens -o x --row-tokens 96 --strategy bestfit
pack tokns -o x --row-tokens 96
train packed -m base
train packed -o x
train packed -m base -o x --tuner loar
train packed -m base -o x --steps 1 --epoch 2
train packed -m base -o x --tuner full --rank 8
train packed -m base -o x --lr -1
train packed -m base -o x --lr fast1
train packed -m base -o x --optimizer adamW
train packed -m base -o x --schedule cosin
train packed -m base -o x --beta 0.2
train tokens -m base -o x
train pair-packed -m tuned -o x --objective dpo --scores scores
merge sft
merge sft -m bass -o x
merge tuned aligned -o x --method tis
quantize aligned -o x --method gptqq
serve tuned --host 0.0.0.0
serve tuend
serve base --adapter sft
eval tuned --ask question.jsonl -o x
eval tuned --askk questions.jsonl -o x
score pair-tokens -m base -o x --top-k -2
rollout tokens -m base -o x
"""
"""Told before any work: what counts here is that the command is taken, so it stops there (--dry-run)."""
DATA_MISTAKES = """
tokenize chats.jsonl -m base -o twice --max-length 64
tokenize chats.jsonl -m base -o x1 --max-length 2
tokenize chats.jsonl -m base -o x2 --loss-scale defualt
tokenize chats.jsonl -m base -o x3 --template-name rag
verify tokns
inspect tokens/manifest.jsn
view tokns -o x.html
run stf chats.jsonl -m base -o out --dry-run
run sft chats.jsonl -o out --dry-run
run sft chats.jsonl -m base --dry-run
run sft chats.jsonl -m base -o out --set train.lrr=1 --dry-run
run sft chats.jsonl -m base -o out --set trian.lr=1 --dry-run
run sft chats.jsonl -m base -o out --to trian --dry-run
recipe export sft chats.jsonl -m base -o out --to mak
recipe shwo sft
plot sft --of los
show chats.jsonl
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data and a model, which is the working directory."""
    folder = tmp_path_factory.mktemp("hints")
    for seed, name in enumerate(("base", "pair-base")):
        tiny_model.write_model(folder / name, vocab_size=263, seed=seed)
        (folder / name / "chat_template.jinja").unlink(missing_ok=True)
        tiny_tokenizer.write_tokenizer(folder / name)
    rows = {
        "chats.jsonl": [{"query": f"q{i}", "response": "in there"} for i in range(4)],
        "pairs.jsonl": [{"query": f"q{i}", "response": "the", "rejected_response": "her"} for i in range(4)],
        "questions.jsonl": [{"question": "q1", "answer": "the"}],
    }
    (folder / "folder").mkdir()
    for name, lines in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    (folder / "folder" / "chats.jsonl").write_text((folder / "chats.jsonl").read_text())
    (folder / "keys.txt").write_text("me:a-long-secret\n")
    before = Path.cwd()
    os.chdir(folder)
    assert run(["tokenize", "chats.jsonl", "-m", "base", "-o", "twice", "-q"])[0] == 0
    try:
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def chain(world: Path) -> dict[str, int]:
    """The whole chain, made by a person who makes mistakes; how many hints each command took."""
    taken = {}
    for line in CHAIN.strip().splitlines():
        words = shlex.split(line.replace("-o alinged", "-o aligned"))
        taken[line] = insist(words)
    return taken


def test_the_whole_chain_by_following_hints(chain: dict[str, int], world: Path) -> None:
    assert all(chain.values()), f"no mistake was noticed in: {[line for line, count in chain.items() if not count]}"
    for name in ("sft", "dpo", "aligned", "small", "answers"):
        assert run(["verify", name])[0] == 0


@pytest.mark.parametrize("line", [f"{line} --dry-run" for line in MISTAKES.strip().splitlines()])
def test_a_mistake_told_before_any_work(line: str, chain: dict[str, int]) -> None:
    assert insist(shlex.split(line)) > 0, "it was no mistake"


@pytest.mark.parametrize("line", DATA_MISTAKES.strip().splitlines())
def test_a_mistake_with_data_recipes_and_tools(line: str, chain: dict[str, int]) -> None:
    assert insist(shlex.split(line)) > 0, "it was no mistake"
