"""What some benchmarks do to their rows before they are asked, as lm-eval does it."""

import re
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def hellaswag(row: Row) -> Row:
    """WikiHow's marks are taken out; the second sentence begins in capitals."""
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    return row | {
        "query": _wikihow(f"{row['activity_label']}: {context}"),
        "choices": [_wikihow(ending) for ending in row["endings"]],
        "gold": int(row["label"]),
    }


def _wikihow(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    text = re.sub(r"\[.*?\]", "", text)
    return text.replace("  ", " ")


def winogrande(row: Row) -> Row:
    """The gap filled in two ways, and what follows it."""
    at = row["sentence"].index("_")
    return row | {
        "contexts": [row["sentence"][:at] + row[name] for name in ("option1", "option2")],
        "ending": row["sentence"][at + 1 :].strip(),
        "gold": int(row["answer"]) - 1,
    }


PREPARE: dict[str, Callable[[Row], Row]] = {"hellaswag": hellaswag, "winogrande": winogrande}
