"""The agent metrics of the SWIFT paper, on answers in the form `Action: NAME`, `Action Input: JSON`.

Definition: ToolBench-static as EvalScope computes it (`third_party/toolbench_static/eval.py`), from
<https://arxiv.org/abs/2401.07324>; <https://arxiv.org/abs/2408.05517> quotes them. `Rouge-L` is that of the package
`rouge` 1.0.1. A row whose reference calls a tool that is not listed is left out, where something was said; the share of
unknown tools is of all rows all the same.
"""

import json
import math
from typing import Any, NamedTuple

_NO_TOOL = "invalid_hallucination_function_name"
_SMALL = 1e-30


class AgentStep(NamedTuple):
    """What an answer does: a plan, and the call or the final text."""

    plan: str
    action: str | None
    arguments: Any
    answer: str | None


class Row(NamedTuple):
    """What was right, what was said, and the names of the tools there were."""

    target: str
    output: str
    tools: list[str]


def read_step(text: str) -> AgentStep:
    """The last action of a text, and its input. `Finish` ends with an answer, or gives up."""
    arguments = text.rpartition("Action Input:")[2].strip() if "Action Input:" in text else "{}"
    action = "none"
    if "Action:" in text:
        action = text.rpartition("Action:")[2].strip().partition("Action Input:")[0].strip()
    if action != "Finish":
        return AgentStep("call", action, arguments, None)
    try:
        given = json.loads(arguments)
        if given["return_type"] != "give_answer":
            return AgentStep("give up", None, None, None)
        answer = str(given["final_answer"]) if "final_answer" in given else "None"
    except (ValueError, KeyError, TypeError, RecursionError):
        return AgentStep("give up", None, None, None)
    return AgentStep("finish", action, given, "None" if answer.strip() in ("", ".", ",") else answer)


def agent_metrics(rows: list[Row]) -> dict[str, float | int | None]:
    """The numbers of all rows; a number of which there is no case is None."""
    plans: list[float] = []
    actions: list[float] = []
    answers: list[float] = []
    f1: dict[str, list[float]] = {"easy": [], "hard": [], "all": []}
    num_unknown = 0
    for row in rows:
        right, said = read_step(row.target), read_step(row.output)
        if right.action == _NO_TOOL:
            continue
        if said.action is not None and right.action != "none" and right.action not in row.tools:
            continue
        num_unknown += said.action is not None and said.action != "none" and said.action not in row.tools
        plans.append(right.plan == said.plan)
        if right.plan == "finish":
            answers.append(rouge_l("none" if said.answer is None else said.answer, right.answer or ""))
        elif right.plan == "call":
            actions.append((said.action or "none") == right.action)
            _add_f1(f1, right, said)
    return {
        "plan_em": _mean(plans),
        "action_em": _mean(actions),
        "hallucination_rate": num_unknown / len(rows) if rows else None,
        "rouge_l": _mean(answers),
        "f1": _mean(f1["all"], _SMALL),
        "easy_f1": _mean(f1["easy"], _SMALL),
        "hard_f1": _mean(f1["hard"], _SMALL),
        "num_rows": len(rows),
        "num_counted": len(plans),
    }


def _mean(values: list[float], more: float = 0.0) -> float | None:
    return math.fsum(values) / len(values) + more if values else None


def _add_f1(f1: dict[str, list[float]], right: AgentStep, said: AgentStep) -> None:
    """How well the arguments of a call fit, in each of the lists that it counts in."""
    if (said.action or "none") != right.action:
        for values in f1.values():
            values.append(0.0)
        return
    try:
        wanted = json.loads(right.arguments)
    except (ValueError, RecursionError):
        return
    try:
        given = json.loads("{}" if said.arguments is None else said.arguments)
    except (ValueError, RecursionError, TypeError):
        given = None
    value = float(given == {}) if wanted == {} else _fit(wanted, given)
    f1["easy" if wanted == {} else "hard"].append(value)
    f1["all"].append(value)


def _fit(wanted: Any, given: Any) -> float:
    """F1 of two objects' members: an equal value is a hit, another value half of one."""
    if not isinstance(wanted, dict) or not isinstance(given, dict):
        return 0.0
    hits = sum(1.0 if given[key] == value else 0.5 for key, value in wanted.items() if key in given)
    if not hits:
        return 0.0
    recall, precision = hits / (len(wanted) + _SMALL), hits / (len(given) + _SMALL)
    return 2 * recall * precision / (recall + precision)


def rouge_l(said: str, right: str) -> float:
    """F of the longest common subsequences of sentences, their words counted as a set."""
    ours, theirs = _sentences(said), _sentences(right)
    if not ours or not theirs:
        return 0.0
    union: set[str] = set()
    for sentence in theirs:
        for other in ours:
            union |= set(_common(sentence, other))
    recall = len(union) / len({word for sentence in theirs for word in sentence})
    precision = len(union) / len({word for sentence in ours for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common(a: list[str], b: list[str]) -> list[str]:
    """A longest common subsequence; of several, the one that the package finds: from the end, back along `b` first."""
    length = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, word in enumerate(a, 1):
        for j, other in enumerate(b, 1):
            length[i][j] = length[i - 1][j - 1] + 1 if word == other else max(length[i - 1][j], length[i][j - 1])
    subsequence: list[str] = []
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            subsequence.append(a[i - 1])
            i, j = i - 1, j - 1
        elif length[i - 1][j] > length[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return subsequence[::-1]
