"""What the verdicts and marks of a judge come to, over all items of an eval."""

from collections.abc import Sequence

from postmill.stages.eval.paired import mcnemar
from postmill.stages.shared.judging import Pair


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


def summarize_marks(marks: Sequence[int | None]) -> dict[str, float | int | None]:
    """Mean of the marks that were given."""
    given = [mark for mark in marks if mark is not None]
    mean = sum(given) / len(given) if given else None
    return {"items": len(marks), "unjudged": len(marks) - len(given), "mean_score": mean}
