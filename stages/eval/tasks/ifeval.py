"""IFEval's four numbers: is an answer as the instructions ask, all of them or each, to the letter or loosely.

Loosely: also without its first line, its last line, both, and its stars (Zhou et al.,
<https://arxiv.org/abs/2311.07911>, section 3). 2 of the 25 rules are not judged here, and 5 without the package
langdetect (`stages/shared/ifeval.py`): their instructions do not count, and a row that has one counts only in the
numbers of instructions.
"""

import functools
from typing import Any

from postmill.stages.eval.tasks.mark import Mark
from postmill.stages.eval.tasks.prompts import Item
from postmill.stages.shared.ifeval import RULES, Rule, language_rules

_NAMES_A_LANGUAGE = ("change_case:english_capital", "change_case:english_lowercase")
"""Judged by their letters alone they would be right where the official checker says no."""


@functools.cache
def judged_rules() -> dict[str, Rule]:
    """Name -> rule, of those that can be judged here as the official checker does."""
    return {name: rule for name, rule in RULES.items() if name not in _NAMES_A_LANGUAGE} | language_rules()


def mark_rules(item: Item, output: str) -> list[Mark]:
    """Strict and loose, of the prompt and of its instructions. Raises ValueError for a row without instructions."""
    names, given = item.row.get("instruction_id_list"), item.row.get("kwargs")
    if not isinstance(names, list) or not isinstance(given, list) or len(names) != len(given):
        raise ValueError("instruction_id_list and kwargs have to be lists of one length")
    # a column of the dataset has every argument of every rule, most of them null
    asked = [(name, {k: v for k, v in (of or {}).items() if v}) for name, of in zip(names, given, strict=True)]
    judged = [(name, of) for name, of in asked if name in judged_rules()]
    marks: list[Mark] = []
    for how, texts in (("strict", [output]), ("loose", _variants(output))):
        followed = [any(_follows(name, of, text) for text in texts) for name, of in judged]
        if not followed:
            continue
        missed = ", ".join(name for (name, _), is_followed in zip(judged, followed, strict=True) if not is_followed)
        if len(judged) == len(asked):
            marks.append(Mark(metric=f"prompt_level_{how}_acc", value=float(all(followed)), said=missed))
        parts = [float(each) for each in followed]
        share = sum(parts) / len(parts)
        marks.append(Mark(metric=f"inst_level_{how}_acc", value=share, said=missed, parts=parts))
    return marks


def _follows(name: str, of: dict[str, Any], text: str) -> bool:
    try:
        return bool(text.strip()) and judged_rules()[name](text, of)
    except KeyError as error:
        raise ValueError(f"{name}: its argument {error} is missing in kwargs") from None


def _variants(output: str) -> list[str]:
    lines = output.split("\n")
    shorter = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [variant for text in (output, *shorter) for variant in (text, text.replace("*", ""))]
