"""Is an answer right? Pure functions from output and expectation; what each rule forgives is written at the rule."""

import re
from collections.abc import Callable

import msgspec

from postmill.stages.eval.config import Rule
from postmill.stages.eval.questions import LETTERS, Question


class Score(msgspec.Struct, frozen=True):
    """`ok` is unset where there was nothing to compare, or nothing was answered; `reason` says what decided."""

    ok: bool | None
    reason: str


def score(question: Question, output: str | None) -> Score:
    """Compare one output with what its question expects."""
    if output is None or question.rule is None:
        return Score(None, "not answered" if output is None else "nothing to compare with")
    return RULES[question.rule](output, question)


def _exact(output: str, question: Question) -> Score:
    equal = any(plain(answer) == plain(output) for answer in question.answers)
    return Score(equal, "equal" if equal else "differs")


def _contains(output: str, question: Question) -> Score:
    inside = [answer for answer in question.answers if contains(output, answer)]
    return Score(bool(inside), f"contains {inside[0]}" if inside else "contains none")


def _contains_all(output: str, question: Question) -> Score:
    missing = [answer for answer in question.answers if not contains(output, answer)]
    return Score(not missing, f"lacks {', '.join(missing)}" if missing else "contains all")


def _regex(output: str, question: Question) -> Score:
    found = [pattern for pattern in question.answers if re.search(pattern, output)]
    return Score(bool(found), f"matches {found[0]}" if found else "no match")


def _choice(output: str, question: Question) -> Score:
    letter = read_choice(output, question.choices)
    return Score(letter in question.answers, f"chose {letter}" if letter else "chose nothing")


RULES: dict[Rule, Callable[[str, Question], Score]] = {
    "exact": _exact,
    "contains": _contains,
    "contains_all": _contains_all,
    "regex": _regex,
    "choice": _choice,
}


def plain(text: str) -> str:
    """Without case, outer space, runs of space, and a full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".!")


def contains(output: str, answer: str) -> bool:
    """Whether `answer` is in `output`, case and spacing aside, and not inside a longer word: `no` is not in `know`."""
    wanted = re.escape(plain(answer))
    return re.search(rf"(?<![a-z0-9]){wanted}(?![a-z0-9])", plain(output)) is not None


def read_choice(output: str, choices: list[str]) -> str | None:
    """The letter that an answer chooses: at its start, after "answer is", alone in it, or as the text of one choice."""
    letters = LETTERS[: len(choices)]
    for pattern in (
        rf"^\W*([{letters}])(?:[.):,\s*]|$)",
        rf"(?i:answer(?: is)?)\W{{0,4}}([{letters}])(?![A-Za-z])",
    ):
        found = re.search(pattern, output)
        if found:
            return str(found.group(1))
    alone: set[str] = set(re.findall(rf"(?<![A-Za-z'])([{letters}])(?![A-Za-z'])", output)) - {"I"}
    if len(alone) == 1:
        return alone.pop()
    named = [letter for letter, choice in zip(letters, choices, strict=True) if contains(output, choice)]
    return named[0] if len(named) == 1 else None
