"""What a model says of its own tokens, written on the tokens that another tokenizer makes of the same rows.

Text that is trained on is cut where both tokenizations have a border. Between two borders lies a piece: some tokens of
either. What is known of a piece is the log-prob of its text, the sum over its tokens; and, where it is one token that
both vocabularies have, the likeliest tokens in its place, as far as the other vocabulary has them. The last token of a
piece has the number. A special token that ends a run of trained tokens is the end of the turn on both sides, by
whatever name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from postmill.io.arrays import to_numpy
from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.manifest import Artifact
from postmill.io.model_folder import tokenizer_digest
from postmill.io.packed import TokenRows
from postmill.io.schemas import SCORES_V1
from postmill.io.scores import ABSENT, NO_TEXT
from postmill.io.table import TableReader
from postmill.io.token_bytes import TokenBytes, read_token_bytes, shared_tokens
from postmill.stages.protocol import Inputs
from postmill.stages.score.config import Score

_END = b"\xff\xfd"
"""What the end of a turn is taken to write."""
_BLOCK = 1024
"""Rows that are written together."""


class Written(NamedTuple):
    """Some rows: their ids, where their numbers begin, and the columns, an array a row."""

    row_id: NDArray[np.void]
    first: NDArray[np.int32]
    columns: dict[str, list[NDArray[Any]]]


class _Run(NamedTuple):
    """Trained tokens of a row with none between them that is not; `at`: which token of the row is the first."""

    at: int
    ids: NDArray[np.int32]


class _Said(NamedTuple):
    """What the model said of a row of its own tokens, from token `start` on."""

    start: int
    logp: NDArray[np.float32]
    top_ids_LK: NDArray[np.int32]
    top_logp_LK: NDArray[np.float32]


class Onto:
    """The rows of another tokenization, each with the row that the model read."""

    def __init__(self, cfg: Score, inputs: Inputs, read: TokenRows, rows: TokenRows, source: Artifact) -> None:
        """read: what the model scores. rows: what is written on, those of `source`.

        Raises ConfigError (2) for what does not go together, ArtifactError (78) for rows that the model did not read,
        or another tokenizer.
        """
        given = inputs["onto_tokenizer"]
        if not given or cfg.head not in ("auto", "lm") or cfg.where == "all" or not cfg.top_k or inputs["prompts"]:
            raise ConfigError(
                "--onto: log-probs of trained text on the tokens of another tokenizer; give --onto-tokenizer FOLDER and"
                " --top-k 64, and leave out --where all, --prompts and other heads",
                USAGE,
            )
        mine, other = given[0].path, inputs["model"][0].path
        assert mine is not None and other is not None
        self.source, tokenizer = source, source.manifest.digests.get("tokenizer")
        if tokenizer is not None and tokenizer_digest(mine) != tokenizer:
            raise ArtifactError(f"--onto-tokenizer {mine}: the rows of --onto are of another tokenizer", MISMATCH)
        self._k, self._read, self._rows = cfg.top_k, read, rows
        self._mine, self._other = read_token_bytes(mine), read_token_bytes(other)
        self._shared = np.array(shared_tokens(self._other, self._mine), np.int64)
        self._of_row = _join(rows, read)
        self._bytes, self._aligned, self._pieces, self._tokens = 0, 0, 0, 0

    def write(self, paths: list[Path]) -> Iterator[Written]:
        """All rows in their order, from the parts in `paths`. Raises ArtifactError (78) if no text is the same."""
        parts = _Parts(paths)
        for first in range(0, len(self._rows), _BLOCK):
            rows = np.arange(first, min(first + _BLOCK, len(self._rows)))
            found = [self._row(row, parts) for row in rows.tolist()]
            yield Written(
                row_id=self._rows.columns(rows, ["row_id"])["row_id"],
                first=np.array([said.start for said in found], np.int32),
                columns={
                    "logp": [said.logp for said in found],
                    "top_ids": [said.top_ids_LK.ravel() for said in found],
                    "top_logp": [said.top_logp_LK.ravel() for said in found],
                },
            )
        if not self._aligned:
            raise ArtifactError("--onto: no trained text is the same in both; tokenize the same rows twice", MISMATCH)

    def metrics(self) -> dict[str, Any]:
        """How much of the trained text is in both, of how many pieces it is, and how many are one token of both."""
        share = self._aligned / max(self._bytes, 1)
        return {"aligned_text": round(share, 6), "pieces": self._pieces, "pieces_of_one_token": self._tokens}

    def _row(self, row: int, parts: "_Parts") -> _Said:
        mine, other = _runs(self._rows, row), _runs(self._read, int(self._of_row[row]))
        said = parts.row(int(self._of_row[row]), self._k)
        start = mine[0].at - 1 if mine else 0
        length = mine[-1].at + len(mine[-1].ids) - start if mine else 0
        written = _Said(
            start=start,
            logp=np.full(length, NO_TEXT, np.float32),
            top_ids_LK=np.full((length, self._k), -1, np.int32),
            top_logp_LK=np.full((length, self._k), ABSENT, np.float32),
        )
        self._bytes += sum(len(text) for run in mine for text in _texts(run.ids, self._mine))
        if len(mine) == len(other):  # else nobody knows which is which
            for run, theirs in zip(mine, other, strict=True):
                self._write_run(written, run, theirs, said)
        return written

    def _write_run(self, written: _Said, run: _Run, theirs: _Run, said: _Said) -> None:
        """The pieces of one run, from what was said of the run that was read."""
        ids, their_ids = run.ids, theirs.ids
        texts, their_texts = _texts(ids, self._mine), _texts(their_ids, self._other)
        ends = pieces(texts, their_texts)
        of_turn = (int(their_ids[-1]), int(ids[-1])) if texts[-1] == their_texts[-1] == _END else None
        first, their_first, place = 0, 0, run.at - written.start
        for end, their_end in ends:
            a, b = theirs.at + their_first - said.start, theirs.at + their_end - said.start
            written.logp[place + first : place + end - 1] = np.nan
            written.logp[place + end - 1] = said.logp[a:b].sum(dtype=np.float64)
            is_one = end - first == their_end - their_first == 1
            if is_one and self._in_mine(their_ids[their_first:their_end], of_turn)[0] == ids[first]:
                top_ids = self._in_mine(said.top_ids_LK[a], of_turn)
                written.top_ids_LK[place + first] = top_ids
                written.top_logp_LK[place + first] = np.where(top_ids < 0, ABSENT, said.top_logp_LK[a])
                self._tokens += 1
            first, their_first = end, their_end
        self._pieces += len(ends)
        self._aligned += sum(map(len, texts[:first]))

    def _in_mine(self, ids_K: NDArray[np.int32], end: tuple[int, int] | None) -> NDArray[np.int32]:
        """Their ids as ours, -1 for those that we do not have. end: what ends turns, theirs and ours."""
        found: NDArray[np.int32] = np.where(ids_K < len(self._shared), self._shared[ids_K % len(self._shared)], -1)
        if end is not None:
            found = np.where(ids_K == end[0], end[1], np.where(found == end[1], -1, found))
        return found.astype(np.int32)


def pieces(mine: list[bytes], other: list[bytes]) -> list[tuple[int, int]]:
    """Where both have a border, as numbers of tokens before it; up to where the texts differ.

    White space that only one of them begins with belongs to the first piece, as the space that SentencePiece puts
    before a text does.
    """
    texts = [b"".join(mine), b"".join(other)]
    leads = [0, 0]
    if texts[0][:1] != texts[1][:1]:
        leads = [len(text) - len(text.lstrip()) for text in texts]
    codes = [np.frombuffer(text[lead:], np.uint8) for text, lead in zip(texts, leads, strict=True)]
    shorter = min(map(len, codes))
    differs = np.flatnonzero(codes[0][:shorter] != codes[1][:shorter])
    same = int(differs[0]) if len(differs) else shorter
    ends = [np.cumsum([len(token) for token in tokens], dtype=np.int64) for tokens in (mine, other)]
    ends = [end - lead for end, lead in zip(ends, leads, strict=True)]
    borders = np.intersect1d(ends[0], ends[1])
    borders = borders[(borders > 0) & (borders <= same)]
    counts = [np.searchsorted(end, borders, side="right").tolist() for end in ends]
    return list(zip(*counts, strict=True))


def _texts(ids: NDArray[np.int32], known: TokenBytes) -> list[bytes]:
    """What each token of a run writes."""
    found = [known.text[number] if number < len(known.text) else b"" for number in ids.tolist()]
    if int(ids[-1]) in known.special:
        found[-1] = _END
    return found


def _runs(rows: TokenRows, row: int) -> list[_Run]:
    laid = rows.lay(np.array([row]))
    trained = np.concatenate([[False], laid.weights != 0, [False]])
    edges = np.flatnonzero(np.diff(trained.astype(np.int8)))
    return [_Run(a, laid.input_ids[a:b]) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]


def _join(rows: TokenRows, read: TokenRows) -> NDArray[np.int64]:
    """Which row of `read` comes from the same line as each of `rows`: the first from it, the second, ...

    Raises ArtifactError (78) where there is none, or another number of them.
    """
    places = []
    for table in (rows, read):
        columns = table.columns(np.arange(len(table)), ["source", "line"])
        place: dict[tuple[int, int], list[int]] = {}
        for row, line in enumerate(zip(columns["source"].tolist(), columns["line"].tolist(), strict=True)):
            place.setdefault(line, []).append(row)
        places.append(place)
    mine, other = places
    missing = [line for line, found in mine.items() if len(other.get(line, ())) != len(found)]
    if missing:
        raise ArtifactError(
            f"--onto: of line {missing[0][1]} it has {len(mine[missing[0]])} rows, and"
            f" {len(other.get(missing[0], ()))} were read ({len(missing):,} such lines); tokenize the same files for"
            " both, with a --max-length that keeps the same rows",
            MISMATCH,
        )
    of_row = np.empty(len(rows), np.int64)
    for line, found in mine.items():
        of_row[found] = other[line]
    return of_row


class _Parts:
    """Rows that were scored, in files of some rows each."""

    def __init__(self, paths: list[Path]) -> None:
        tables = [TableReader(path, SCORES_V1) for path in paths]
        self._batches: list[pa.RecordBatch] = [batch for table in tables for batch in table]
        self._offsets = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def row(self, row: int, k: int) -> _Said:
        number = int(np.searchsorted(self._offsets, row, side="right")) - 1
        batch, index = self._batches[number], row - int(self._offsets[number])

        def values(name: str) -> NDArray[Any]:
            column = batch.column(name)
            offsets = to_numpy(column.offsets)
            return to_numpy(column.values)[offsets[index] : offsets[index + 1]]

        start = int(to_numpy(batch.column("start"))[index])
        return _Said(start, values("logp"), values("top_ids").reshape(-1, k), values("top_logp").reshape(-1, k))
