"""Rows of our own in the schemas of published benchmarks, for tests of `eval --task`."""

from typing import Any

_THINGS = ("apple", "river", "lamp", "stone", "window", "garden", "letter", "engine", "coat", "bridge", "cup", "field")
Rows = dict[str, list[dict[str, Any]]]


def gsm8k(count: int) -> Rows:
    def row(n: int) -> dict[str, Any]:
        thing = _THINGS[n % len(_THINGS)]
        a, b, sum_ = n + 2, 2 * n + 1, 3 * n + 3
        return {
            "question": f"Ann has {a} of {thing} and buys {b} more. How many does she have?",
            "answer": f"She has {a} + {b} = <<{a}+{b}={sum_}>>{sum_}.\n#### {sum_}",
        }

    return {"train": [row(n) for n in range(40, 52)], "test": [row(n) for n in range(count)]}


def arc(count: int) -> Rows:
    def row(n: int) -> dict[str, Any]:
        texts = [f"a {_THINGS[n % 12]}", f"the old {_THINGS[(n + 3) % 12]}", "none of these", f"{n} of them"]
        return {
            "question": f"Which one is number {n}?",
            "choices": {"text": texts, "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[n % 4],
        }

    return {"train": [row(n) for n in range(50, 58)], "test": [row(n) for n in range(count)]}


def hellaswag(count: int) -> Rows:
    def row(n: int) -> dict[str, Any]:
        thing = _THINGS[n % 12]
        return {
            "activity_label": "Making things",
            "ctx_a": f"A man holds a {thing}. [header] He looks at it.",
            "ctx_b": "then he",
            "endings": [
                f"puts the {thing} down  [title] and leaves.",
                "sings a long song about the sea.",
                f"[step] sells {n} of them.",
                "sleeps.",
            ],
            "label": str(n % 4),
        }

    return {"validation": [row(n) for n in range(count)], "train": [row(n) for n in range(60, 66)]}


def winogrande(count: int) -> Rows:
    def row(n: int) -> dict[str, Any]:
        thing = _THINGS[n % 12]
        return {
            "sentence": f"The {thing} did not fit into the box because the _ was too large by {n}.",
            "option1": thing,
            "option2": "box",
            "answer": str(n % 2 + 1),
        }

    return {"validation": [row(n) for n in range(count)], "train": [row(n) for n in range(60, 66)]}


def mmlu(count: int) -> Rows:
    def row(n: int) -> dict[str, Any]:
        return {
            "question": f" What is {n} plus {n}? ",
            "subject": "high_school_sums",
            "choices": [str(2 * n), str(n), str(n * n + 1), "nothing"],
            "answer": n % 4,
        }

    return {"dev": [row(n) for n in range(80, 85)], "test": [row(n) for n in range(count)]}


def truthfulqa(count: int) -> Rows:
    def row(n: int) -> dict[str, Any]:
        thing = _THINGS[n % 12]
        true, false = (
            [f"A {thing} is a thing.", "I have no comment."],
            [f"A {thing} can speak.", "Nobody knows it.", "Yes"],
        )
        return {
            "question": f"What is a {thing}?",
            "mc1_targets": {"choices": [true[0], *false], "labels": [1, 0, 0, 0]},
            "mc2_targets": {"choices": [*true, *false], "labels": [1, 1, 0, 0, 0]},
        }

    return {"validation": [row(n) for n in range(count)]}


def ceval(count: int) -> Rows:
    def row(n: int) -> dict[str, Any]:
        return {
            "id": str(n),
            "question": f"{n}加{n}等于多少？",
            "A": str(2 * n),
            "B": str(n),
            "C": "不知道",
            "D": str(n + 1),
            "answer": "ABCD"[n % 4],
        }

    return {"dev": [row(n) for n in range(80, 85)], "val": [row(n) for n in range(count)]}


ROWS = {
    "gsm8k": gsm8k,
    "arc_easy": arc,
    "arc_challenge": arc,
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "mmlu": mmlu,
    "truthfulqa_mc1": truthfulqa,
    "truthfulqa_mc2": truthfulqa,
    "ceval": ceval,
}
"""By task: a function from the number of rows to splits."""
