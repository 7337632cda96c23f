"""The content law over chat templates that others wrote: TRL's, and those of any folder.

    .venv/bin/python tests/foreign_templates.py [FOLDER ...]

Each part of each chat (a text, a call's arguments, a tool definition, thinking) holds a word of its own.
A row that is accepted must have every word in its text, but for thinking, which is counted where a template leaves it
out. A row may be refused for a part that leaves no trace: with any other words in it transformers renders the same text
(a tool's name may still be there, written by a call). It may not be refused where transformers' own rendering has them
all. Everything else a template may raise is its own business, as long as transformers raises as well.

2026-11-30: TRL's 72 templates and 63 of axolotl (37), mistral.rs (7), chujiezheng/chat_templates (18) and minja (1),
2,565 rows: 1,642 written, 252 with their thinking left out and named, 671 refused. None lost, none refused though
written.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trl
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from tiny_encoder import encoder, run  # noqa: E402

from postmill import _native  # noqa: E402

OWN = Path(trl.__file__).parent / "chat_templates"
NAMED = {"bos_token": "<bos>", "eos_token": "<end>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "qtool",
        "description": "It weighs qdescription.",
        "parameters": {"type": "object", "properties": {"sack": {"type": "string"}}, "required": ["sack"]},
    },
}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(number: int, argument: str) -> dict[str, Any]:
    function = {"name": "qtool", "arguments": {"sack": argument}}
    return {"id": f"abcdefgh{number}", "type": "function", "function": function}


def result(number: int, content: str) -> dict[str, Any]:
    return {"role": "tool", "name": "qtool", "tool_call_id": f"abcdefgh{number}", "content": content}


SYSTEM, ASK, ANSWER = said("system", "Be qsystem."), said("user", "What is qask?"), said("assistant", "It is qanswer.")
MORE, LAST = said("user", "And qmore?"), said("assistant", "Then qlast.")
THOUGHT = {"reasoning_content": "I think qthought."}
PARTS = [{"type": "text", "text": "First qone. "}, {"type": "text", "text": "Then qtwo."}]
CALLS = said("assistant", "", tool_calls=[call(1, "qsack")])

CHATS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [ASK, ANSWER]},
    "system": {"messages": [SYSTEM, ASK, ANSWER]},
    "two turns": {"messages": [ASK, ANSWER, MORE, LAST]},
    "system, two turns": {"messages": [SYSTEM, ASK, ANSWER, MORE, LAST]},
    "spaces": {"messages": [said("user", "  What is qask?\n"), said("assistant", "\n It is qanswer.  ")]},
    "two questions": {"messages": [ASK, MORE, ANSWER]},
    "two answers": {"messages": [ASK, ANSWER, LAST]},
    "assistant first": {"messages": [ANSWER, ASK, LAST]},
    "parts": {"messages": [said("user", PARTS), ANSWER]},
    "parts of an answer": {"messages": [ASK, said("assistant", PARTS)]},
    "thinking": {"messages": [ASK, ANSWER | THOUGHT]},
    "thinking of the past": {"messages": [ASK, ANSWER | THOUGHT, MORE, LAST]},
    "tools unused": {"messages": [ASK, ANSWER], "tools": [TOOL]},
    "a call at the end": {"messages": [ASK, CALLS], "tools": [TOOL]},
    "a call and its result": {"messages": [ASK, CALLS, result(1, "It is qresult."), LAST], "tools": [TOOL]},
    "words and a call": {
        "messages": [
            ASK,
            said("assistant", "I look qanswer.", tool_calls=[call(1, "qsack")]),
            result(1, "qresult"),
            LAST,
        ],
        "tools": [TOOL],
    },
    "parallel calls": {
        "messages": [
            ASK,
            said("assistant", "", tool_calls=[call(1, "qsack"), call(2, "qbag")]),
            result(1, "qresult"),
            result(2, "qother"),
            LAST,
        ],
        "tools": [TOOL],
    },
    "a call without tools": {"messages": [ASK, CALLS, result(1, "qresult"), LAST]},
    "thinking and a call": {"messages": [ASK, CALLS | THOUGHT, result(1, "qresult"), LAST], "tools": [TOOL]},
}
"""Nineteen chats."""

WORD = re.compile(r"\bq[a-z]+")


def words(row: Any) -> set[str]:
    """The words that must be in the text. A description is left out by many templates on purpose of their format."""
    return set(WORD.findall(json.dumps(row))) - {"qdescription"}


def theirs(source: str, row: dict[str, Any]) -> str | None:
    """What transformers renders; None where it raises."""
    kwargs = {"tools": row.get("tools"), "chat_template": source, **NAMED}
    try:
        return str(render_jinja_template([row["messages"]], **kwargs)[0][0])
    except Exception:  # a template may raise anything
        return None


def leaves_no_trace(source: str, row: dict[str, Any], refusal: str) -> bool:
    """Whether the part that a refusal names can have any other words and transformers still renders the same text."""
    named = re.search(r"\$((?:\.\w+|\[\d+\])+): chat template does not write", refusal)
    if named is None:
        return False
    changed = json.loads(json.dumps(row))
    *path, last = [int(step) if step.isdigit() else step for step in re.findall(r"\w+", named[1])]
    holder = changed
    for step in path:
        holder = holder[step]
    holder[last] = json.loads(WORD.sub("zother", json.dumps(holder[last])))
    return theirs(source, changed) == theirs(source, row)


def outcome(source: str, row: dict[str, Any]) -> str:
    """`written`, `named`, `refused: ...`, or a fault: `lost ...`, `refused though written ...`, `crash ...`."""
    expected = words(row)
    before = theirs(source, row)
    try:
        enc = encoder(template=source, special_texts=list(NAMED.items()), date=(2026, 11, 29))
    except _native.NativeError as error:
        return f"refused: {error}" if before is None else f"not compiled: {error}"
    try:
        made, _, counts = run(enc, row)
    except _native.NativeError as error:
        has_all = before is not None and not expected - set(WORD.findall(before))
        if has_all and leaves_no_trace(source, row, str(error)):
            return f"refused: {error}"
        return f"refused though written: {error}" if has_all else f"refused: {error}"
    if not made:
        return "refused: nothing to train"
    missing = expected - set(WORD.findall(enc.read(made[0]["input_ids"])))
    if not missing:
        return "written"
    if missing == {"qthought"} and counts["unwritten_thinking"]:
        return "named"
    return f"lost {', '.join(sorted(missing))}"


def sources(folders: list[Path]) -> Iterator[tuple[str, str]]:
    for folder in [OWN, *folders]:
        for path in sorted([*folder.rglob("*.jinja"), *folder.rglob("*.jinja2")]):
            yield f"{folder.name}/{path.name}", path.read_text(encoding="utf-8")


FAULTS = ("lost", "refused though written", "not compiled")


def kind_of(found: str) -> str:
    return "lost" if found.startswith("lost") else found.partition(":")[0]


def main() -> int:
    counts: Counter[str] = Counter()
    for name, source in sources([Path(folder) for folder in sys.argv[1:]]):
        for title, row in CHATS.items():
            found = outcome(source, row)
            counts[kind_of(found)] += 1
            if kind_of(found) in FAULTS:
                print(f"{name}\t{title}\t{found[:240]}")
    print(dict(counts), file=sys.stderr)
    return int(any(counts[kind] for kind in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
