"""How people name rows: by id (or its first digits), or by file:line."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from postmill.cli.tool import ancestors
from postmill.io.manifest import Artifact

if TYPE_CHECKING:
    import pyarrow as pa


class RowName(msgspec.Struct, frozen=True):
    """What someone typed for a row."""

    word: str

    def fits(self, row: dict[str, Any], names: list[str]) -> bool:
        """Whether it names `row`, which has `row_id`, `source` and `line`; `names` are those of the sources."""
        place, _, line = self.word.rpartition(":")
        if place and line.isdecimal():
            return row["line"] == int(line) and row["source"] < len(names) and _same_file(place, names[row["source"]])
        return row["row_id"] is not None and bool(row["row_id"].hex().startswith(self.word.lower()))


def _same_file(typed: str, name: str) -> bool:
    """A source's name is the end of its path; what was typed may be longer or shorter."""
    return typed == name or name.endswith("/" + typed) or typed.endswith("/" + name)


def source_names(artifact: Artifact) -> list[str]:
    """Names of the sources that the `source` columns of an artifact count, from itself or the nearest ancestor."""
    for found in [artifact, *(parent for *_, parent in ancestors(artifact) if parent)]:
        names = found.manifest.metrics.get("sources")
        if names:
            return [str(name) for name in names]
    return []


def place(row: dict[str, Any], names: list[str]) -> str:
    """`file:line` of a row."""
    source = row["source"]
    return f"{names[source] if source < len(names) else f'source {source}'}:{row['line']}"


def find_rows(
    tokens: Artifact, wanted: RowName | None, names: list[str]
) -> Iterator[tuple[Path, int, "pa.RecordBatch"]]:
    """Rows of a tokens artifact in order, all or those that `wanted` names: table, ordinal, and a batch of that row."""
    from postmill.io.packed import token_tables

    first = 0
    for table in token_tables(tokens):
        for batch in table:
            for index, row in enumerate(batch.select(["row_id", "source", "line"]).to_pylist()):
                if wanted is None or wanted.fits(row, names):
                    yield table.path, first + index, batch.slice(index, 1)
            first += batch.num_rows
