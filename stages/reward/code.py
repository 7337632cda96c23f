"""Code as an answer: the program that an answer holds is run on the row's tests, in the sandbox (docs/sandbox.md).

A program that fails, crashes or takes too long has failed its test: that is a score, not a missing one. Tests are of
two forms. Pairs of standard input and output are compared outside the sandbox, so an answer cannot forge them.
Assertions run in the answer's own interpreter: convenient, and to be cheated by code that looks for them.
"""

import re
import time
from typing import Any

import msgspec

from postmill.stages.reward.code_options import Code
from postmill.stages.reward.row import Row
from postmill.stages.shared.sandbox.run import Limits, Ran, run_python

_BLOCK = re.compile(r"```(\w*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_SHARE_OF_LIMIT = 0.8
"""Of a row's time, what programs may use: the rest is for starting them."""


class Test(msgspec.Struct, frozen=True):
    """Assertions to run after the program, or what it should print for an input."""

    assertions: str = ""
    stdin: str = ""
    stdout: str | None = None


def program_of(text: str) -> str:
    """The last block of Python of an answer, or of no language; without any the whole text after `</think>`."""
    text = text.rpartition("</think>")[2]
    blocks = [body for language, body in _BLOCK.findall(text) if language.lower() in ("", "python", "py", "python3")]
    return blocks[-1] if blocks else text


def read_tests(value: Any) -> list[Test]:
    """The tests of a row. Raises ValueError for what are none."""
    if isinstance(value, str) and value.strip():
        return [Test(assertions=value)]
    if isinstance(value, dict) and len(value.get("inputs", ())) == len(value.get("outputs", ())) > 0:
        return [Test(stdin=_text(i), stdout=_text(o)) for i, o in zip(value["inputs"], value["outputs"], strict=True)]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return [Test(assertions=item) for item in value]
        if all(isinstance(item, dict) and {"input", "output"} <= item.keys() for item in value):
            return [Test(stdin=_text(item["input"]), stdout=_text(item["output"])) for item in value]
    raise ValueError(f"tests {str(value)[:60]!r}: expected assertions, or inputs with outputs (--code.tests)")


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def judge_code(row: Row, options: dict[str, Any]) -> float | None:
    """1 if the program passes the row's tests, or the share that it passes. None for a row without tests."""
    cfg: Code = msgspec.convert(options["code"], Code)
    value = row.columns.get(cfg.tests)
    if value is None:
        return None
    tests, program = read_tests(value), program_of(row.output)
    deadline = time.monotonic() + _SHARE_OF_LIMIT * options["time_limit_s"]
    passed = 0
    for test in tests:
        left = min(cfg.test_limit_s, deadline - time.monotonic())
        if left > 0 and _passes(program, test, Limits(time_s=left, memory_mb=cfg.test_memory_mb), cfg):
            passed += 1
        elif cfg.credit == "all":
            return 0.0
    return passed / len(tests)


def _passes(program: str, test: Test, limits: Limits, cfg: Code) -> bool:
    source = f"{program}\n{test.assertions}\n"
    ran: Ran = run_python(source, stdin=test.stdin, limits=limits, kind=cfg.sandbox)
    if ran.status != "ok":
        return False
    return ran.has_ended if test.stdout is None else _lines(ran.stdout) == _lines(test.stdout)


def _lines(text: str) -> list[str]:
    """Lines without white space at their ends, and without empty ones at the end of the text."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
