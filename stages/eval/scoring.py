"""Is an answer right? Pure functions from output and expectation; what each rule forgives is written at the rule."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

import msgspec

from postmill.stages.eval.agent import read_step
from postmill.stages.eval.config import Rule
from postmill.stages.eval.questions import LETTERS, Question
from postmill.stages.shared.measures import likeness, overlap, read_box, words_right


class Score(msgspec.Struct, frozen=True):
    """`ok` is unset where there was nothing to compare, or nothing was answered; `reason` says what decided."""

    ok: bool | None
    reason: str
    value: float | None = None
    """Between 0 and 1, for rules that measure; others are all right or all wrong."""


def score(question: Question, output: str | None, pixels_of_one: Sequence[float] | None = None) -> Score:
    """Compare one output with what its question expects.

    pixels_of_one: of the picture, for 1 in the numbers of a box, across and down; unset where they are compared as
    they are.
    """
    if output is None or question.rule is None:
        return Score(None, "not answered" if output is None else "nothing to compare with")
    if pixels_of_one is not None:
        return _iou_in_pixels(output, question, pixels_of_one)
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


def _agent(output: str, question: Question) -> Score:
    """The same plan as the reference, and the same action; `agent_metrics` has the numbers of all rows."""
    right, said = read_step(question.answers[0]), read_step(output)
    done = f"{said.plan} {said.action}" if said.plan == "call" else said.plan
    return Score((said.plan, said.action) == (right.plan, right.action), done)


def _iou(output: str, question: Question) -> Score:
    """A box that shares more than half of both areas with the one that is expected."""
    box = read_box(output)
    wanted = [right for answer in question.answers if (right := read_box(answer))]
    if box is None or not wanted:
        return Score(False, "no box", 0.0)
    best = max(overlap(box, other) for other in wanted)
    return Score(best > 0.5, f"overlap {best:.3f}", best)


def _iou_in_pixels(output: str, question: Question, scale: Sequence[float]) -> Score:
    """As `_iou`, with the answer's box in pixels of the picture, as the expected ones are."""
    said = read_box(output)
    if said is None:
        return Score(False, "no box", 0.0)
    box = [side * scale[at % 2] for at, side in enumerate(said)]
    found = _iou(", ".join(f"{side:.4f}" for side in box), question)
    return Score(found.ok, f"{found.reason}, box {', '.join(f'{side:.0f}' for side in box)}", found.value)


def _anls(output: str, question: Question) -> Score:
    best = max(likeness(plain(output), plain(answer)) for answer in question.answers)
    return Score(best == 1, f"likeness {best:.3f}", best)


def _wer(output: str, question: Question) -> Score:
    best = max(words_right(_spoken(output), _spoken(answer)) for answer in question.answers)
    return Score(best == 1, f"word error rate {1 - best:.3f}", best)


def _spoken(text: str) -> list[str]:
    """Words without marks between them: nobody speaks commas."""
    return re.sub(r"[^\w\s']|_", " ", unicodedata.normalize("NFKC", text).casefold()).split()


RULES: dict[Rule, Callable[[str, Question], Score]] = {
    "exact": _exact,
    "contains": _contains,
    "contains_all": _contains_all,
    "regex": _regex,
    "choice": _choice,
    "agent": _agent,
    "iou": _iou,
    "anls": _anls,
    "wer": _wer,
}


def plain(text: str) -> str:
    """Without case, outer space, runs of space, and a full stop at the end; accents in their composed form."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".!")


# scripts that are written without spaces, or join particles to words: a name is whole between any two of their letters
_UNSPACED = (
    r"\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3040-\u312F\u3400-\u9FFF\uAC00-\uD7AF\uF900-\uFAFF\U00020000-\U0003FFFF"
)
_LETTER = rf"[^\W_{_UNSPACED}]"
# accents and vowel signs continue a word, though Python does not count them to \w
_MARK = r"[\u0300-\u036F\u0900-\u0DFF]"
_BEFORE = rf"(?<!{_LETTER})(?<!{_MARK})"
_AFTER = rf"(?!{_LETTER}|{_MARK})"
# `18` begins neither in `3.18` nor in `1/18`, and `-18` is another number; `10-18` is a range
_BEFORE_DIGIT = r"(?<!\d[.,/])(?<!^-)(?<![^\w]-)"
_AFTER_DIGIT = r"(?![.,/]\d)"
_NUMBER = re.compile(
    rf"{_BEFORE}(?<!\d[./])(?:(?<!\w)(-))?[$€£¥]?(\d{{1,3}}(?:,\d{{3}})+(?![,\d])(?:\.\d+)?|\d+(?:\.\d+)*|\.\d+)"
    rf"(/\d+(?![/\d]))?{_AFTER}"
)


def contains(output: str, answer: str) -> bool:
    """Whether `answer` is in `output`, case and spacing aside, and not inside a longer word: `no` is not in `know`.

    A number is compared by value with the whole numbers of the output: 18 is not in `18.5`, `3.18`, `-18` or `1/18`,
    and 1018 is in `1,018`.
    """
    wanted, text = _one_minus(plain(answer)), _one_minus(plain(output))
    number = _NUMBER.fullmatch(wanted)
    if number:
        # two slashes make a date, not a fraction: its parts are numbers
        text = re.sub(r"\d+(?:/\d+){2,}", lambda date: date.group().replace("/", " "), text)
        return _value(number) in [_value(match) for match in _NUMBER.finditer(text)]
    before = _BEFORE + (_BEFORE_DIGIT if wanted[:1].isdigit() else "")
    after = _AFTER + (_AFTER_DIGIT if wanted[-1:].isdigit() else "")
    return re.search(before + re.escape(wanted) + after, text) is not None


def _one_minus(text: str) -> str:
    """With the mathematical minus sign written as the one of keyboards."""
    return text.replace("\N{MINUS SIGN}", "-")


def _value(number: re.Match[str]) -> Fraction | str:
    """What a number stands for. Numbers with several points, such as versions, stand for themselves."""
    sign, digits, divisor = number.groups()
    digits = digits.replace(",", "")
    if digits.count(".") > 1 or (divisor and not int(divisor[1:])):
        return number.group()
    return Fraction(digits) * (-1 if sign else 1) / (int(divisor[1:]) if divisor else 1)


def read_choice(output: str, choices: list[str]) -> str | None:
    """The letter that an answer chooses. The surest sign decides, of several like it the last.

    In order: after "answer is"; at the start with a mark behind it; the only letter in the text; the text of one
    choice; at the start before a space.
    """
    letters = LETTERS[: len(choices)]
    said: list[str] = re.findall(rf"(?i:answer(?: is)?)\W{{0,4}}([{letters}])(?![A-Za-z'])", output)
    if said:
        return said[-1]
    first = re.search(rf"^\W*([{letters}])(?:[.):,*]|\s*$)", output)
    if first:
        return first.group(1)
    # `A triangle` names no choice, `A is right` does
    article = r"(?!(?<=A) (?!(?:is|or|and|as|because|since|seems)\b)[a-z])"
    alone: set[str] = set(re.findall(rf"(?<![A-Za-z'])([{letters}])(?![A-Za-z']){article}", output)) - {"I"}
    if len(alone) == 1:
        return alone.pop()
    named = [letter for letter, choice in zip(letters, choices, strict=True) if contains(output, choice)]
    if len(named) == 1:
        return named[0]
    start = re.search(rf"^\W*([{letters}])(?=\s){article}", output)
    return start.group(1) if start else None
