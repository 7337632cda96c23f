"""How many of an instruction's rules an answer follows. Rows have IFEval's `instruction_id_list` and `kwargs`."""

from typing import Any

from postmill.stages.reward.row import Row
from postmill.stages.shared.ifeval import RULES


def ifeval(row: Row, options: dict[str, Any]) -> float | None:
    """The share of the row's instructions that the answer follows, of those that are judged here."""
    names = row.columns.get("instruction_id_list")
    given = row.columns.get("kwargs") or []
    if not isinstance(names, list):
        return None
    asked = [
        (RULES[name], of or {}) for name, of in zip(names, given + [{}] * len(names), strict=False) if name in RULES
    ]
    if not asked:
        return None
    # a column of the dataset has every argument of every rule, most of them null
    followed = [rule(row.output, {k: v for k, v in of.items() if v is not None}) for rule, of in asked]
    return sum(followed) / len(followed)
