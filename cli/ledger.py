"""`postmill ledger`: what became of the rows that were not passed on as they came."""

import sys
from typing import Any

from postmill.cli.tool import ancestors, need, open_artifact, parse
from postmill.io.errors import NO_INPUT, ArtifactError
from postmill.io.ledger import read_ledger
from postmill.io.manifest import Artifact

USAGE = """
Tell the fate of rows: those dropped, cut or masked, by stage; `why` follows one row through every stage.

usage: postmill ledger ARTIFACT
       postmill ledger why ROW ARTIFACT     ROW is a row id (or its first digits), or file:line
"""


def _row(row: dict[str, Any], names: list[str]) -> str:
    name = names[row["source"]] if row["source"] < len(names) else f"source {row['source']}"
    lost = "" if row["tokens_before"] is None else f"  {row['tokens_before']} -> {row['tokens_after'] or 0} tokens"
    row_id = row["row_id"].hex() if row["row_id"] else "-"
    return f"{row_id}  {name}:{row['line']}  {row['action']}: {row['reason']}{lost}"


def source_names(artifact: Artifact) -> list[str]:
    """Names of the sources that `source` columns count, from the tokenize stage among the ancestors."""
    for found in [artifact, *(parent for *_, parent in ancestors(artifact) if parent)]:
        names = found.manifest.metrics.get("sources")
        if names:
            return [str(name) for name in names]
    return []


def _why(word: str, artifact: Artifact) -> int:
    names = source_names(artifact)
    chain = [artifact, *(parent for *_, parent in ancestors(artifact) if parent)]
    place, _, line = word.rpartition(":")
    found = False
    for stage in reversed(chain):
        for row in read_ledger(stage.path).to_pylist():
            by_place = line.isdecimal() and row["line"] == int(line) and _names_source(place, row["source"], names)
            if by_place or (row["row_id"] and row["row_id"].hex().startswith(word)):
                sys.stdout.write(f"{stage.manifest.stage}: {_row(row, names)}\n")
                found = True
    if found:
        return 0
    kept = _find_kept(word, chain, names)
    if kept is None:
        raise ArtifactError(f"{word}: no such row in {artifact.path} or what it was made from; check the id", NO_INPUT)
    sys.stdout.write(f"kept whole by every stage: {kept}\n")
    return 0


def _names_source(place: str, source: int, names: list[str]) -> bool:
    return source < len(names) and (names[source] == place or names[source].endswith("/" + place))


def _find_kept(word: str, chain: list[Artifact], names: list[str]) -> str | None:
    """Where a row that no ledger mentions is among the token rows."""
    from postmill.io.packed import token_tables

    place, _, line = word.rpartition(":")
    for artifact in (found for found in chain if found.manifest.kind == "tokens"):
        ordinal = 0
        for table in token_tables(artifact):
            for batch in table:
                ids, sources, lines = (batch[name].to_pylist() for name in ("row_id", "source", "line"))
                for row_id, source, number in zip(ids, sources, lines, strict=True):
                    at = line.isdecimal() and number == int(line) and _names_source(place, source, names)
                    if at or row_id.hex().startswith(word):
                        return f"{table.path} row {ordinal}, id {row_id.hex()}"
                    ordinal += 1
    return None


def run(argv: list[str]) -> int:
    """Print ledger rows."""
    args = parse(argv, USAGE)
    if args is None:
        return 0
    need(args, 1, 3, USAGE)
    if args.words[0] == "why":
        need(args, 3, 3, USAGE)
        return _why(args.words[1], open_artifact(args.words[2]))
    artifact = open_artifact(args.words[0])
    names = source_names(artifact)
    for row in read_ledger(artifact.path).to_pylist():
        sys.stdout.write(_row(row, names) + "\n")
    return 0
