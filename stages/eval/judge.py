"""A model as the judge of answers: two answers against each other, or one against a rubric.

Judges prefer what they read first (Zheng et al., <https://arxiv.org/abs/2306.05685>, section 3.3): every pair is shown
in both orders, and a verdict that turns with the order is a tie, counted apart. A verdict has one form, its last line;
a reply without it is no verdict, never a tie or a 0.
"""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from postmill.stages.eval.paired import mcnemar

Winner = Literal["after", "before", "tie"]
_VERDICT = re.compile(r"^\W*verdict\W*:\W*(A|B|tie)\W*$", re.IGNORECASE | re.MULTILINE)
_SCORE = re.compile(r"^\W*score\W*:\W*(10|[1-9])\W*$", re.IGNORECASE | re.MULTILINE)

PAIR = """You compare two answers to the same conversation. {rubric}
Neither the order nor the length of the answers matters. Say in a few sentences what each does well and badly. Then end
with one line, in exactly one of these forms:
Verdict: A
Verdict: B
Verdict: tie

[Conversation]
{conversation}

[Answer A]
{first}

[Answer B]
{second}

[End]"""
ONE = """You mark an answer to a conversation. {rubric}
Say in a few sentences what it does well and badly. Then end with one line, with a whole number from 1 (useless) to 10
(could not be better), in exactly this form:
Score: 7

[Conversation]
{conversation}

[Answer]
{answer}

[End]"""
RUBRIC = "What counts is whether an answer is right, does what was asked, and is clear."


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """The judge's verdict on one item: in both orders, and together."""

    item_id: str
    first: str
    """What was said with the new answer as A: A, B, tie, or "" for no verdict."""
    second: str
    """What was said with the new answer as B."""
    winner: Winner | None
    """None without a verdict in one of the orders."""
    is_swapped: bool
    """The verdict turned with the order, so that it is a tie."""
    replies: list[str]


def read_verdict(reply: str) -> str:
    """A, B or tie, from the last line that has the form; "" if none has."""
    found = _VERDICT.findall(reply)
    return "" if not found else "tie" if found[-1].lower() == "tie" else found[-1].upper()


def read_score(reply: str) -> int | None:
    """1 to 10, from the last line that has the form."""
    found = _SCORE.findall(reply)
    return int(found[-1]) if found else None


def combine(item_id: str, replies: Sequence[str]) -> Pair:
    """Two replies, the second with the answers swapped, as one verdict."""
    first, second = (read_verdict(reply) for reply in replies)
    seen: list[Winner | None] = [
        {"A": "after", "B": "before", "tie": "tie"}.get(first),  # type: ignore[list-item]
        {"A": "before", "B": "after", "tie": "tie"}.get(second),  # type: ignore[list-item]
    ]
    winner: Winner | None = None
    if None not in seen:
        winner = seen[0] if seen[0] == seen[1] else "tie"
    is_swapped = None not in seen and seen[0] != seen[1]
    return Pair(
        item_id=item_id, first=first, second=second, winner=winner, is_swapped=is_swapped, replies=list(replies)
    )


def summarize_pairs(pairs: Sequence[Pair]) -> dict[str, float | int | None]:
    """Counts; the share of wins with ties as halves; and how likely so uneven a split is by chance, ties aside."""
    wins, losses, ties = (sum(pair.winner == name for pair in pairs) for name in ("after", "before", "tie"))
    judged = wins + losses + ties
    return {
        "items": len(pairs),
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "swapped": sum(pair.is_swapped for pair in pairs),
        "unjudged": len(pairs) - judged,
        "win_rate": (wins + ties / 2) / judged if judged else None,
        "p": mcnemar(wins, losses),
    }


def summarize_scores(scores: Sequence[int | None]) -> dict[str, float | int | None]:
    """Mean of the marks that were given."""
    given = [score for score in scores if score is not None]
    mean = sum(given) / len(given) if given else None
    return {"items": len(scores), "unjudged": len(scores) - len(given), "mean_score": mean}
