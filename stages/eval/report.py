"""The summary of an eval, and the table of what was answered before and after."""

import shutil
import unicodedata
from typing import Any

import msgspec

from postmill.stages.eval.agent import Row, agent_metrics
from postmill.stages.eval.answers import Answer
from postmill.stages.eval.questions import Question
from postmill.stages.eval.scoring import Score


class Side(msgspec.Struct, frozen=True):
    """What one model answered: replies and scores by item."""

    replies: dict[str, Answer]
    scores: dict[str, Score]


def summarize(questions: list[Question], side: Side) -> dict[str, Any]:
    """Counts and accuracy, of all and of each group. Errors are counted apart: accuracy is of what was answered."""
    metrics = _counts(questions, side)
    groups = sorted({question.group for question in questions} - {""})
    if groups:
        metrics["groups"] = {name: _counts([q for q in questions if q.group == name], side) for name in groups}
    agents = [
        Row(question.answers[0], side.replies[question.item_id].output or "", question.tools)
        for question in questions
        if question.rule == "agent" and side.replies[question.item_id].output is not None
    ]
    return metrics | ({"agent": agent_metrics(agents)} if agents else {})


def _counts(questions: list[Question], side: Side) -> dict[str, Any]:
    verdicts = [side.scores[question.item_id].ok for question in questions]
    num_scored, num_right = sum(v is not None for v in verdicts), sum(v is True for v in verdicts)
    return {
        "num_items": len(questions),
        "num_errors": sum(side.replies[q.item_id].error is not None for q in questions),
        "num_scored": num_scored,
        "num_right": num_right,
        "accuracy": round(num_right / num_scored, 6) if num_scored else None,
    }


def compare(questions: list[Question], before: Side, after: Side) -> dict[str, Any]:
    """How the two differ, item by item: right before and after, gained, lost, and answered in the same words."""
    pairs = [(before.scores[q.item_id].ok, after.scores[q.item_id].ok) for q in questions]
    return {
        "kept": sum(pair == (True, True) for pair in pairs),
        "gained": sum(was is False and now is True for was, now in pairs),
        "lost": sum(was is True and now is False for was, now in pairs),
        "same_output": sum(before.replies[q.item_id].output == after.replies[q.item_id].output for q in questions),
    }


def markdown(questions: list[Question], after: Side, before: Side | None) -> str:
    """The whole table, for `report.md`."""
    sides = [("before", before), ("after", after)] if before else [("answer", after)]
    head = ["question", *[name for name, _ in sides]]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for question in questions:
        cells = [_cell(question.messages[-1]["content"])]
        cells += [f"{_mark(side, question)} {_cell(_said(side, question))}".strip() for _, side in sides if side]
        lines.append("| " + " | ".join(cells) + " |")
    totals = [f"- {name}: {_total(questions, side)}" for name, side in sides if side]
    return "# Answers\n\n" + "\n".join(totals) + "\n\n" + "\n".join(lines) + "\n"


def terminal(questions: list[Question], after: Side, before: Side | None) -> str:
    """The same for a terminal, cut to its width."""
    columns = max(60, shutil.get_terminal_size((110, 24)).columns)
    sides = [("before", before), ("after", after)] if before else [("answer", after)]
    width = (columns - 3 * len(sides)) // (len(sides) + 1)
    rows = [["question", *[name for name, _ in sides]]]
    for question in questions:
        said = [f"{_mark(side, question)} {_said(side, question)}".strip() for _, side in sides if side]
        rows.append([question.messages[-1]["content"], *said])
    lines = ["   ".join(_fit(cell, width) for cell in row).rstrip() for row in rows]
    lines += [f"{name}: {_total(questions, side)}" for name, side in sides if side]
    return "\n".join([lines[0], "-" * min(columns, max(map(len, lines))), *lines[1:]])


def _said(side: Side, question: Question) -> str:
    reply = side.replies[question.item_id]
    return f"error: {reply.error}" if reply.error is not None else reply.output or ""


def _mark(side: Side, question: Question) -> str:
    return {True: "[ok]", False: "[no]", None: ""}[side.scores[question.item_id].ok]


def _total(questions: list[Question], side: Side) -> str:
    counts = _counts(questions, side)
    errors = f", {counts['num_errors']} errors" if counts["num_errors"] else ""
    return f"{counts['num_right']} of {counts['num_scored']} right{errors}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _fit(text: str, width: int) -> str:
    """One line of exactly `width` columns; wide characters count two, control characters are dropped."""
    used, kept = 0, []
    for char in " ".join(text.split()):
        if unicodedata.category(char)[0] == "C":
            continue
        size = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used + size > width - 1:
            kept.append("…")
            used += 1
            break
        kept.append(char)
        used += size
    return "".join(kept) + " " * (width - used)
