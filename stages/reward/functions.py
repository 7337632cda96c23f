"""Built-in reward functions: pure functions of a row, and their settings.

Each returns a number, or None where it does not apply (no solution to compare with). They raise nothing on strange
answers: a wrong form is a low reward. Sources are ms-swift's rewards and DAPO, <https://arxiv.org/abs/2503.14476>.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from postmill.stages.reward.code import judge_code
from postmill.stages.reward.ifeval import ifeval
from postmill.stages.reward.row import Row
from postmill.stages.shared.agent_formats.read import read_calls
from postmill.stages.shared.measures import likeness, overlap, read_box

_NUMBER = re.compile(r"(?<![\w.,/])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w/]|[.,]\d)")
_THINK_ANSWER = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
_REACT = re.compile(r"Action:.*?\nAction Input:.*?$", re.DOTALL)
_REACT_FINAL = re.compile(r"Thought:.*?(?:Action:|Final Answer:)", re.DOTALL)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def solution_of(row: Row, options: dict[str, Any]) -> str | None:
    """The right answer of the row's prompt as text, or None."""
    value = row.columns.get(options["solution"])
    return None if value is None else str(value)


def answer_of(text: str) -> str:
    """What is inside the last `<answer>` element, or else the text after `</think>`, without outer white space."""
    found = _ANSWER_TAG.findall(text)
    return (found[-1] if found else text.rpartition("</think>")[2]).strip()


def numbers_in(text: str) -> list[float]:
    """Whole numbers of a text: `1,018` is one number; a piece of `3.18`, `1/5` or `A4` is none."""
    return [float(word.replace(",", "")) for word in _NUMBER.findall(text)]


def exact(row: Row, options: dict[str, Any]) -> float | None:
    """1 if the answer is the solution, white space at the ends and case aside."""
    solution = solution_of(row, options)
    return None if solution is None else float(answer_of(row.output).casefold() == solution.strip().casefold())


def contains(row: Row, options: dict[str, Any]) -> float | None:
    """1 if the solution stands in the answer as whole words."""
    solution = solution_of(row, options)
    if solution is None:
        return None
    pattern = rf"(?<!\w){re.escape(solution.strip())}(?!\w)"
    return float(re.search(pattern, answer_of(row.output), re.IGNORECASE) is not None)


def number(row: Row, options: dict[str, Any]) -> float | None:
    """1 if the last number of the answer equals the solution."""
    solution = solution_of(row, options)
    if solution is None:
        return None
    right, said = numbers_in(solution), numbers_in(answer_of(row.output))
    if not right:
        return None
    return float(bool(said) and math.isclose(said[-1], right[-1], rel_tol=1e-9, abs_tol=1e-9))


def iou(row: Row, options: dict[str, Any]) -> float | None:
    """What the answer's box shares with the solution's, over the area of both; 0 for an answer without a box."""
    solution = solution_of(row, options)
    right = read_box(solution or "")
    if right is None:
        return None
    said = read_box(answer_of(row.output))
    return overlap(said, right) if said else 0.0


def anls(row: Row, options: dict[str, Any]) -> float | None:
    """How alike the letters of answer and solution are, case aside; 0 where less than half is."""
    solution = solution_of(row, options)
    return None if solution is None else likeness(answer_of(row.output).casefold(), solution.strip().casefold())


def math_equal(row: Row, options: dict[str, Any]) -> float | None:
    """1 if math-verify finds the answer equal to the solution; None for a solution that it cannot read."""
    from math_verify import parse, verify

    solution = solution_of(row, options)
    if solution is None:
        return None
    right = parse(solution if "$" in solution or "\\boxed" in solution else f"${solution}$", parsing_timeout=None)
    if not right:
        return None
    return float(verify(right, parse(row.output, parsing_timeout=None), timeout_seconds=None))


def form(row: Row, options: dict[str, Any]) -> float:
    """1 for one `<think>` block followed by one `<answer>` block and nothing else."""
    is_once = row.output.count("<think>") == 1 and row.output.count("<answer>") == 1
    return float(is_once and _THINK_ANSWER.fullmatch(row.output) is not None)


def repetition(row: Row, options: dict[str, Any]) -> float:
    """From 0 down to -1: the share of 3-grams of words that stand there again."""
    words = row.output.lower().split()
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return -(1.0 - len(set(grams)) / len(grams)) if grams else 0.0


def cosine(row: Row, options: dict[str, Any]) -> float | None:
    """Right answers earn 1 down to 0.5 as they grow to the length limit, wrong ones -0.5 (short) up to 0 (long)."""
    right = number(row, options)
    if right is None:
        right = exact(row, options)
    if right is None:
        return None
    at_start, at_limit = (1.0, 0.5) if right >= 1 else (-0.5, 0.0)
    done = min(row.num_tokens / options["max_answer_tokens"], 1.0)
    return at_limit + 0.5 * (at_start - at_limit) * (1.0 + math.cos(math.pi * done))


def soft_overlong(row: Row, options: dict[str, Any]) -> float:
    """0 up to the soft limit, then down to -1 at the length limit and below beyond it."""
    expected = options["max_answer_tokens"] - options["soft_tokens"]
    return min(0.0, float(-(row.num_tokens - expected) / options["soft_tokens"]))


def react_format(row: Row, options: dict[str, Any]) -> float:
    """1 for a ReAct step: a thought, then an action with its input or a final answer."""
    text = row.output
    if _REACT_FINAL.search(text) is None:
        return 0.0
    return float("Final Answer:" in text or _REACT.search(text) is not None)


def tool_calls(row: Row, options: dict[str, Any]) -> float | None:
    """The share of calls that are those of the solution, by name and arguments, in any order; one too many is a miss.

    The solution is a call or a list of calls, `{"name": ..., "arguments": {...}}`, or the JSON of them.
    """
    wanted = _calls(row.columns.get(options["solution"]))
    if wanted is None:
        return None
    said = [call["function"] for message in row.transcript for call in message.get("tool_calls", [])]
    said = said or read_calls("hermes", row.output)[1]
    if not wanted and not said:
        return 1.0
    left, found = list(said), 0
    for call in wanted:
        if call in left:
            left.remove(call)
            found += 1
    return found / max(len(wanted), len(said))


def _calls(value: Any) -> list[dict[str, Any]] | None:
    """Calls as name and arguments; None if it is no call."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    calls = value if isinstance(value, list) else [value]
    found = []
    for call in calls:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            return None
        arguments = inner.get("arguments", {})
        found.append({"name": inner["name"], "arguments": _parsed(arguments)})
    return found


def _parsed(text: Any) -> Any:
    """The value of JSON; what is none, as it is."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def toolbench(row: Row, options: dict[str, Any]) -> float | None:
    """1 if the last ReAct step calls what the solution's calls, with equal input; a text that is no JSON as a text."""
    solution = solution_of(row, options)
    if solution is None:
        return None
    said, wanted = _react_step(row.output), _react_step(solution)
    return float(said == wanted)


def _react_step(text: str) -> tuple[str, Any]:
    """The last action of a ReAct text and its input; `none` and nothing where it has none."""
    text = text.strip().removesuffix("Observation:")
    action = text.rpartition("Action:")[2].partition("Action Input:")[0].strip() if "Action:" in text else "none"
    given = text.rpartition("Action Input:")[2].strip() if "Action Input:" in text else "{}"
    return action, _parsed(given)


def reasoning_gym(name: str) -> "Callable[[Row], float | None]":
    """The scorer of a dataset of reasoning-gym. Rows have its columns `answer` (or a solution) and `metadata`."""
    from reasoning_gym import get_score_answer_fn

    score = get_score_answer_fn(name)

    def judge(row: Row) -> float | None:
        right = row.columns.get("answer", row.columns.get("solution"))
        if right is None:
            return None
        entry = {"question": "", "answer": right, "metadata": row.columns.get("metadata") or {}}
        return float(score(answer_of(row.output), row.columns | entry))

    return judge


def env(row: Row, options: dict[str, Any]) -> float | None:
    """What the environment gave, all turns together."""
    return row.env_reward


REASONING_GYM = "reasoning-gym"
"""What stands before the name of one of its datasets."""

Function = Callable[[Row, dict[str, Any]], float | None]

GROUP = "postmill.rewards"
"""Entry points that add names."""
BUILT_IN: dict[str, tuple[Function, int]] = {
    "exact": (exact, 1),
    "contains": (contains, 1),
    "number": (number, 1),
    "iou": (iou, 1),
    "anls": (anls, 1),
    "math": (math_equal, 1),
    "format": (form, 1),
    "repetition": (repetition, 1),
    "cosine": (cosine, 1),
    "soft_overlong": (soft_overlong, 1),
    "react_format": (react_format, 1),
    "env": (env, 1),
    "tool_calls": (tool_calls, 1),
    "toolbench": (toolbench, 1),
    "ifeval": (ifeval, 1),
    "code": (judge_code, 1),
}
"""Name -> function and version. Raise the version when a row would get another score."""
