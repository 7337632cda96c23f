"""`postmill ledger`: what became of the rows that were not passed on as they came."""

import sys
from collections.abc import Iterator
from typing import Any

from postmill.cli.rows import RowName, find_rows, place, source_names
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
    lost = "" if row["tokens_before"] is None else f"  {row['tokens_before']} -> {row['tokens_after'] or 0} tokens"
    row_id = row["row_id"].hex() if row["row_id"] else "-"
    return f"{row_id}  {place(row, names)}  {row['action']}: {row['reason']}{lost}"


def _why(word: str, artifact: Artifact) -> int:
    wanted = RowName(word)
    chain = [artifact, *(parent for *_, parent in ancestors(artifact) if parent)]
    has_reasons = False
    for stage in reversed(chain):
        names = source_names(stage)
        for row in read_ledger(stage.path).to_pylist():
            if wanted.fits(row, names):
                sys.stdout.write(f"{stage.manifest.stage}: {_row(row, names)}\n")
                has_reasons = True
    if has_reasons:
        return 0
    kept = next(_find_kept(wanted, chain), None)
    if kept is None:
        raise ArtifactError(f"{word}: no such row in {artifact.path} or what it was made from; check the id", NO_INPUT)
    sys.stdout.write(f"kept whole by every stage: {kept}\n")
    return 0


def _find_kept(wanted: RowName, chain: list[Artifact]) -> Iterator[str]:
    """Where rows that no ledger mentions are among the token rows."""
    for artifact in (found for found in chain if found.manifest.kind == "tokens"):
        for table, ordinal, row in find_rows(artifact, wanted, source_names(artifact)):
            yield f"{table} row {ordinal}, id {row['row_id'][0].as_py().hex()}"


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
