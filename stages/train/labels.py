"""What rows are labelled with, for classifiers: one number, or a list that travels in a row's other columns."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.packed import PackedReader
from postmill.stages.shared.heads import Head


def label_lists(reader: PackedReader, rows: NDArray[np.int64], head: Head) -> NDArray[np.float32]:
    """[R, C]: 1 for each class of a row (multi_label), or the numbers themselves (regression).

    Raises ArtifactError (65) for a row whose label is not such a list.
    """
    numbers = reader.columns(rows, ["label"])["label"]
    labels = np.zeros((len(rows), head.outputs), np.float32)
    for at, (row, number, extra) in enumerate(zip(rows.tolist(), numbers, reader.values(rows, "extra"), strict=True)):
        label = number if not np.isnan(number) else msgspec.json.decode(extra or "{}").get("label")
        items = label if isinstance(label, list) else [] if label is None else [label]
        if not all(isinstance(item, int | float) for item in items):
            raise _refused(row, label, head)
        if head.problem == "multi_label":
            if label is None or not all(item == int(item) and 0 <= item < head.outputs for item in items):
                raise _refused(row, label, head)
            labels[at, [int(item) for item in items]] = 1
        elif len(items) != head.outputs:
            raise _refused(row, label, head)
        else:
            labels[at] = items
    return labels


def check_labels(reader: PackedReader, rows: NDArray[np.int64], head: Head) -> None:
    """Raise ArtifactError (65) naming the first of `rows` whose label does not fit a classifier."""
    if head.problem != "single_label":
        for at in range(0, len(rows), 8192):
            label_lists(reader, rows[at : at + 8192], head)
        return
    labels = reader.columns(rows, ["label"])["label"]
    fits = (labels == np.floor(labels)) & (labels >= 0) & (labels < head.outputs)
    if not fits.all():
        at = int(np.argmin(fits))
        raise _refused(int(rows[at]), None if np.isnan(labels[at]) else labels[at], head)


def _refused(row: int, label: Any, head: Head) -> ArtifactError:
    wanted = {
        "single_label": f"expected a class from 0 to {head.outputs - 1}",
        "multi_label": f"expected a list of classes from 0 to {head.outputs - 1}",
        "regression": "expected a number" if head.outputs == 1 else f"expected a list of {head.outputs} numbers",
        None: "",
    }[head.problem]
    shown = "no label" if label is None else f"label {label!r}" if isinstance(label, list) else f"label {label:g}"
    return ArtifactError(
        f"row {row:,}: {shown}, {wanted}; mend the `label` column, or pass another --seq-cls.labels", BAD_DATA
    )


def step_labels(reader: PackedReader, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[T], rows end to end: 1 or 2 at the last token of a wrong or right step of an answer, 0 elsewhere.

    A step is a span of weights, and the `label` of a row lists whether each is right. Raises ArtifactError (65) for a
    row that has another number of labels than spans.
    """
    pieces = []
    records = reader.records(rows, ["length", "spans", "turns", "extra", "source"])
    for row, record in zip(rows.tolist(), records, strict=True):
        labels = msgspec.json.decode(record["extra"] or "{}").get("label")
        ends = _step_ends(record["spans"], record["turns"])
        if not isinstance(labels, list) or len(labels) != len(ends) or not all(label in (0, 1) for label in labels):
            raise ArtifactError(
                f"row {row:,}: label {labels!r} for an answer of {len(ends)} steps, expected as many of true and false;"
                " give each step of the answer as a text part with another loss_scale than the one before"
                " (docs/heads.md)",
                BAD_DATA,
            )
        piece = np.zeros(record["length"], np.float32)
        piece[np.array(ends, np.int64) - 1] = 1 + np.array(labels, np.float32)
        pieces.append(piece)
    return np.concatenate(pieces)


def count_steps(reader: PackedReader, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many steps each row's answer has."""
    both = zip(reader.values(rows, "spans"), reader.values(rows, "turns"), strict=True)
    return np.array([len(_step_ends(spans, turns)) for spans, turns in both], np.float64)


def _step_ends(spans: list[dict[str, Any]], turns: list[dict[str, Any]]) -> list[int]:
    """Where each step ends: its span, without what closes the turn behind it."""
    closings = [turn["closing"] for turn in turns if turn["closing"] < turn["generated_end"]]
    ends = []
    for span in spans:
        closing = next((at for at in closings if span["start"] <= at < span["end"]), span["end"])
        if closing > span["start"]:
            ends.append(closing)
    return ends
