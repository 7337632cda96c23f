"""Products that a small model cannot do in its head, and the tool that can. Writes three files here.

    python calc.py [FOLDER]

`warm.jsonl` has a few solved ones, some with a call and some without; `ask.jsonl` and `held_out.jsonl` have questions
and their solutions, no question twice. `calc` is the tool of the rollout: `--tools calc.py:calc`.
"""

import ast
import json
import operator
import random
import sys
from pathlib import Path

SYSTEM = 'To compute, say <tool_call>{"name": "calc", "arguments": {"x": "2*3"}}</tool_call>.'
_OPERATIONS = {ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub}


def calc(x: str) -> str:
    """The value of sums, differences and products of whole numbers."""
    return str(_value(ast.parse(x[:100], mode="eval").body))


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return int(_OPERATIONS[type(node.op)](_value(node.left), _value(node.right)))
    raise ValueError("only whole numbers, +, - and *")


def questions(count: int, seed: int) -> list[tuple[int, int]]:
    """`count` different pairs of numbers of two digits."""
    draw = random.Random(seed)
    found: dict[tuple[int, int], None] = {}
    while len(found) < count:
        found[draw.randrange(12, 99), draw.randrange(12, 99)] = None
    return list(found)


def row_of(a: int, b: int) -> dict[str, object]:
    """A question and its solution."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{a} times {b}?"}]
    return {"messages": messages, "solution": str(a * b)}


def solved(a: int, b: int, *, by_call: bool, draw: random.Random) -> dict[str, object]:
    """An answered question; without a call the answer is a guess, as the model's would be."""
    said: list[dict[str, str]] = []
    if by_call:
        call = json.dumps({"name": "calc", "arguments": {"x": f"{a}*{b}"}})
        said = [
            {"role": "assistant", "content": f"<tool_call>{call}</tool_call>"},
            {"role": "tool", "content": str(a * b)},
        ]
    number = a * b if by_call else a * b + draw.randrange(-90, 90)
    messages = row_of(a, b)["messages"]
    assert isinstance(messages, list)
    return {"messages": [*messages, *said, {"role": "assistant", "content": str(number)}]}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    every, draw = questions(48 + 96 + 1200, seed=0), random.Random(1)
    files = {
        "warm": [solved(a, b, by_call=number % 5 == 0, draw=draw) for number, (a, b) in enumerate(every[:48])],
        "held_out": [row_of(a, b) for a, b in every[48:144]],
        "ask": [row_of(a, b) for a, b in every[144:]],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
