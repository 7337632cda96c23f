"""What groups of texts must be like: a query and its texts, or the texts of a query, each read together with it."""

import numpy as np

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.packed import PackedReader
from postmill.stages.train.objectives.needs import Needs


def check_groups(place: str, reader: PackedReader, needs: Needs) -> None:
    """Raise ArtifactError (65) naming the first row that is in no such group, or whose label is missing or unfit."""
    rows, _ = reader.layout()
    columns = reader.columns(rows, ["pair_id", "side", "label"])
    _, group, count = np.unique(columns["pair_id"], return_inverse=True, return_counts=True)

    def number(side: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        return np.bincount(group[columns["side"] == side], minlength=len(count))

    query, wrong, right = number(0), number(1), number(2)
    whole = query + wrong + right == count
    if needs.head.kind == "pool":
        whole &= (query == 1) & (right == 1)
    else:
        whole &= (query == 0) & (right >= 1)
        if needs.coupling == "group":
            whole &= wrong >= 1
    bad = ~whole[group] | (columns["side"] < 0)
    if bad.any():
        row = int(rows[np.argmax(bad)])
        what = "a query and its texts" if needs.head.kind == "pool" else "texts that fit a query and texts that do not"
        raise ArtifactError(
            f"{place}: {int(bad.sum()):,} of {len(rows):,} rows are in no group of {what}, like row {row:,}; tokenize"
            f" with --for {'embed' if needs.head.kind == 'pool' else 'rank'} (docs/heads.md)",
            BAD_DATA,
        )
    if "label" in needs.columns and np.isnan(columns["label"]).any():
        row = int(rows[np.argmax(np.isnan(columns["label"]))])
        raise ArtifactError(f"{place}: row {row:,} has no label, which this loss compares with", BAD_DATA)
