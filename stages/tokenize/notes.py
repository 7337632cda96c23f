"""What a run of tokenize tells its user besides errors: oddities it accepted, and options that met nothing."""

import difflib
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from postmill.io.errors import ConfigError
from postmill.io.json_file import NOT_JSON
from postmill.stages.progress import Progress
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.tokenize.reading import Reading
from postmill.stages.tokenize.totals import Totals

if TYPE_CHECKING:
    from postmill.stages.tokenize.sources import Sources

_ACCEPTED = {"byte_order_marks": "a byte order mark, passed over", "crlf_lines": "the line ends in CRLF, read as LF"}


_MOST_NAMES = 12
"""Columns that are named before the others are counted."""


class Notes:
    """What was accepted and its maker should know of; a line of warning each, with the first place."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._first: dict[str, str] = {}
        self._too_long: tuple[int, int] | None = None
        """Least and most tokens of the rows that were too long."""

    def look(self, counts: dict[str, Any], ledger: pa.RecordBatch) -> None:
        """Note the first places in a chunk; chunks come in the order of the input."""
        source, line = counts.pop("source"), counts.pop("first_crlf", None)
        if line is not None:
            self._first.setdefault("crlf_lines", f"{self._names[source]}:{line}")
        if counts.get("byte_order_marks"):
            self._first.setdefault("byte_order_marks", f"{self._names[source]}:1")

        lines = zip(ledger["reason"].to_pylist(), ledger["tokens_before"].to_pylist(), strict=True)
        lengths = [tokens for reason, tokens in lines if reason == "too_long"]
        if lengths:
            lengths += self._too_long or ()
            self._too_long = (min(lengths), max(lengths))

    def remedy(self, cfg: Tokenize) -> str:
        """What to do where no row is left."""
        if self._too_long is None:
            return "mend them"
        least, most = self._too_long
        return f"they have {least} to {most} tokens: raise --max-length {cfg.max_length}, or choose a --truncation"

    def say(self, cfg: Tokenize, totals: Totals, reading: Reading) -> None:
        """Warn, and name what nobody reads."""
        sums = totals.sums
        for name, where in reading.cut.items():
            Progress.warn("tokenize", f"{name}: {where}; kept what came before")
        unused = sorted(totals.columns_unused)
        if unused:
            more = f" and {len(unused) - _MOST_NAMES} more" if len(unused) > _MOST_NAMES else ""
            names = ", ".join(unused[:_MOST_NAMES]) + more
            Progress.say("tokenize", f"not read, kept in extra: {names}", always=True)
        if reading.no_text:
            named = ", ".join(f"{name} ({kind})" for name, kind in sorted(reading.no_text.items()))
            Progress.say("tokenize", f"left out, with no text form: {named}", always=True)
        if sums.get("rows_with_nan"):
            what = "rows have NaN or Infinity in columns that nobody reads; kept in extra as null"
            Progress.say("tokenize", f"{sums['rows_with_nan']} {what}", always=True)
        for name, what in _ACCEPTED.items():
            if name in self._first:
                Progress.warn("tokenize", f"{self._first[name]}: {what} ({sums[name]} in all)")
        turns, parts = sums.get("unwritten_thinking", 0), sums.get("unwritten_parts", 0)
        if turns:
            Progress.warn("tokenize", f"the chat template leaves out the thinking of {turns} assistant messages")
        if parts:
            Progress.warn("tokenize", f"the chat template leaves out {parts} texts, tool calls or tool definitions")
        rows = sums.get("rows_with_look_alikes", 0)
        if rows and cfg.special_text == "keep":
            what = "special tokens as text, which are encoded as special tokens; --special-text escape makes them text"
            Progress.warn("tokenize", f"{rows} rows hold {what}")


def check_columns(cfg: Tokenize, totals: Totals, sources: "Sources") -> None:
    """Raises ConfigError for a column to rename or to leave out that no row has."""
    seen = totals.columns_seen | sources.reading.dropped
    absent = [name for name in [*cfg.columns, *cfg.drop] if name not in seen and name != "system"]
    if not absent or not totals.sums["rows"]:
        return
    first = next((chunk.data for chunk in sources.chunks()), b"").lstrip().partition(b"\n")[0]
    try:
        row = msgspec.json.decode(first.removeprefix(b"\xef\xbb\xbf"))
    except NOT_JSON:
        row = {}
    known = list(row) if isinstance(row, dict) else []
    near = difflib.get_close_matches(absent[0], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the first row has {', '.join(known)}"
    option = "columns" if absent[0] in cfg.columns else "drop"
    raise ConfigError(f"{option}: no row has a column {absent[0]!r}; {hint}")
