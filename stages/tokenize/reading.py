"""How files are read, what has been found on the way, and files that end too early."""

from collections.abc import Iterator

import msgspec

from postmill._native import JsonSplitter
from postmill.io.errors import ArtifactError

GET_AGAIN = "the file was cut or damaged, get it again"


class CutFile(ArtifactError):
    """A file that ends before it is complete; what came before may be right."""


class Reading(msgspec.Struct):
    """How files are read, and what has been found while reading them."""

    columns: dict[str, str] = {}
    """Columns to rename, old to new: for what is a column of ours."""
    drop: frozenset[str] = frozenset()
    """Columns that are not read."""
    dropped: set[str] = set()
    """Of these, those that some table has."""
    keep_cut: bool = False
    """Read a cut file as far as it goes."""
    at: float = 0.0
    """How far the file that is being read has come, 0 to 1."""
    cut: dict[str, str] = {}
    """Files that were cut, and where."""
    no_text: dict[str, str] = {}
    """Columns of tables that nobody reads and that have no text form, with their types: left out."""


def whole_lines(lines: Iterator[bytes], name: str, how: Reading) -> Iterator[bytes]:
    """The whole lines of a file that may be cut; where it was is written into `how`."""
    held, records = b"", 0
    try:
        for more in lines:
            block = held + more
            end = block.rfind(b"\n") + 1
            held = block[end:]
            records += block.count(b"\n")
            if end:
                yield block[:end]
    except CutFile as fault:
        how.cut[name] = f"cut behind line {records} ({fault.message.removeprefix(f'{name}: ').partition(';')[0]})"
        return
    if _is_open(held):
        how.cut[name] = f"cut behind line {records}, inside a record"
    elif held:
        yield held


def _is_open(line: bytes) -> bool:
    """Whether a line ends inside a value."""
    splitter = JsonSplitter()
    try:
        splitter.feed(line)
        splitter.finish()
    except ValueError as fault:
        return getattr(fault, "reason", "") == "truncated"
    return False


def lower(fault: BaseException) -> str:
    """The first words of a library's message, as ours begin."""
    text = " ".join(str(fault).split())
    return text[:1].lower() + text[1:160]
