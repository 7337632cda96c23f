"""`postmill evaldiff`: is one eval better than another, on the items that both asked in the same words?"""

import sys
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.tool import need, open_artifact, parse
from postmill.io.errors import FAILED, MISMATCH, ArtifactError, ConfigError
from postmill.io.manifest import Artifact

USAGE = """
Compare two evals item by item: the difference of each number, its interval, and how likely it is by chance.

usage: postmill evaldiff BEFORE AFTER [--across-prompts] [--fail-drop SHARE] [--json]

  --across-prompts   compare items that were asked in other words, too
  --fail-drop        exit 1 if a number is lower by more than this share, and 95% of the interval is below 0
  --json             print one object

Items have the same id; where they have groups (subjects), those count as clusters. The same two evals give the same
numbers each time.
"""


def _items(artifact: Artifact) -> dict[str, tuple[str, str]]:
    """Prompt and group of each item."""
    from postmill.io.schemas import EVAL_ITEMS_V1
    from postmill.io.table import TableReader

    table = TableReader(artifact.file("items.arrow"), EVAL_ITEMS_V1)
    rows = [row for batch in table for row in batch.select(["item_id", "prompt", "group"]).to_pylist()]
    return {row["item_id"]: (row["prompt"], row["group"]) for row in rows}


def _scores(artifact: Artifact) -> dict[str, dict[str, float]]:
    """By metric and item; an answer that could not be scored has none."""
    from postmill.io.schemas import EVAL_SCORES_V1
    from postmill.io.table import TableReader

    is_task = "task" in artifact.manifest.metrics
    scores: dict[str, dict[str, float]] = {}
    for batch in TableReader(artifact.file("scores.arrow"), EVAL_SCORES_V1):
        for row in batch.select(["item_id", "rule", "score"]).to_pylist():
            if row["score"] is not None:
                scores.setdefault(row["rule"] if is_task else "accuracy", {})[row["item_id"]] = row["score"]
    return scores


def differences(before: Artifact, after: Artifact, *, across_prompts: bool) -> tuple[list[Any], list[str]]:
    """Each number's difference, and lines about items without a partner.

    Raises ArtifactError (78) for what is no eval, or has no items in common that were asked in the same words.
    """
    import numpy as np

    from postmill.stages.eval.paired import compare, holm

    for artifact in (before, after):
        if artifact.manifest.stage != "eval":
            raise ArtifactError(f"{artifact.path}: made by {artifact.manifest.stage}, expected an eval", MISMATCH)
    items_a, items_b = _items(before), _items(after)
    shared = [item for item in items_a if item in items_b]
    notes = [
        f"{path}: {len(mine) - len(shared)} items are not in the other"
        for path, mine in ((before.path, items_a), (after.path, items_b))
        if len(mine) > len(shared)
    ]
    others = [item for item in shared if items_a[item][0] != items_b[item][0]]
    if others and not across_prompts:
        raise ArtifactError(
            f"{len(others)} of {len(shared)} items were asked in other words, the first is {others[0]!r}; pass"
            " --across-prompts to compare them all the same",
            MISMATCH,
        )
    scores_a, scores_b = _scores(before), _scores(after)
    key = int(before.digest[-16:], 16) ^ (int(after.digest[-16:], 16) << 1)
    compared = []
    for metric in scores_a:
        pairs = [item for item in shared if item in scores_a[metric] and item in scores_b.get(metric, {})]
        if pairs:
            columns = [np.array([scores[metric][item] for item in pairs]) for scores in (scores_a, scores_b)]
            compared.append(compare(metric, columns[0], columns[1], [items_a[item][1] for item in pairs], key))
    if not compared:
        raise ArtifactError(f"{before.path}, {after.path}: no scored items in common", MISMATCH)
    return holm(compared), notes


def run(argv: list[str]) -> int:
    """0, or 1 where --fail-drop finds a drop."""
    args = parse(argv, USAGE, ("--across-prompts", "--json"), ("--fail-drop",))
    if args is None:
        return 0
    need(args, 2, 2, USAGE)
    try:
        most = float(args.options.get("--fail-drop", "inf"))
    except ValueError:
        raise ConfigError(f"--fail-drop {args.options['--fail-drop']}: expected a share, as 0.02") from None
    before, after = (open_artifact(word) for word in args.words)
    compared, notes = differences(before, after, across_prompts=args.has("--across-prompts"))
    if args.has("--json"):
        told = {
            "before": str(Path(before.path)),
            "after": str(Path(after.path)),
            "differences": compared,
            "notes": notes,
        }
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    else:
        sys.stdout.write("".join(line + "\n" for line in [*_table(compared), *notes]))
    dropped = [each for each in compared if each.difference < -most and each.high < 0]
    return FAILED if dropped else 0


def _table(compared: list[Any]) -> list[str]:
    wide = max(6, *(len(each.metric) for each in compared))
    lines = [
        f"{'metric':<{wide}}  items  before   after  change  95% interval       p  p (all)  gained  lost  detectable"
    ]
    for each in compared:
        reach = "" if each.detectable is None else f"{each.detectable:.4f}"
        lines.append(
            f"{each.metric:<{wide}} {each.num_items:>6} {each.before:>7.4f} {each.after:>7.4f} {each.difference:>+7.4f}"
            f"  {each.low:>+.4f}..{each.high:>+.4f} {each.p:>7.4f} {each.p_holm:>8.4f} {each.gained:>7} {each.lost:>5}"
            f"  {reach:>10}"
        )
    return lines
