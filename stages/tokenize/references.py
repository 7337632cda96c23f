"""The dataset syntax: `[hf:|ms:]id_or_path[@revision][:subset1/subset2|:all][#count]`.

A path that exists wins before each separator is looked for, so files may have `#` and `:` in their names. `hf::` and
`ms::`, as ms-swift writes them, mean the same. The slash separates subsets, not a subset from a split. Without a hub's
prefix a reference is a path: what is missing here is not looked for on the network.
"""

from pathlib import Path

import msgspec

from postmill.io.errors import ConfigError
from postmill.io.hub import PREFIXES, Repository, parse_repository


class Reference(msgspec.Struct, frozen=True):
    """One dataset, as it was asked for."""

    text: str
    """What the user wrote: names the dataset in messages and manifests."""
    place: str = ""
    """A path; empty for what is on a hub."""
    repository: Repository | None = None
    """On a hub, the repository."""
    subsets: tuple[str, ...] = ()
    """Empty: the default one; `("all",)`: every one."""
    count: int | None = None
    """Rows to take: fewer are a sample, more are repeats."""


def parse_reference(text: str) -> Reference:
    """Take a reference apart. Raises ConfigError."""
    if not text:
        raise ConfigError("dataset: the reference is empty; give a path, hf:id or ms:id")
    if Path(text).exists():
        return Reference(text, text)
    prefix = next((prefix for prefix in PREFIXES if text.startswith(prefix)), "")
    rest, count = _split_count(text.removeprefix(prefix), text, is_path=not prefix)
    if not prefix:
        place, subsets = (rest, "") if Path(rest).exists() else _split_subsets(rest)
        return Reference(text, place, None, _names(subsets, text), count)
    name, _, subsets = rest.partition(":")
    repository = parse_repository(prefix + name, "dataset")
    return Reference(text, "", repository, _names(subsets, text), count)


def _split_count(rest: str, text: str, *, is_path: bool) -> tuple[str, int | None]:
    left, mark, number = rest.rpartition("#")
    if not mark or (is_path and Path(rest).exists()):
        return rest, None
    if not number.isascii() or not number.isdigit() or int(number) == 0:
        raise ConfigError(
            f"dataset {text}: #{number} is not a count of rows; expected a whole number from 1, as in #500"
        )
    return left, int(number)


def _split_subsets(rest: str) -> tuple[str, str]:
    """A path and what follows its last colon, if the path is there without it."""
    left, mark, subsets = rest.rpartition(":")
    return (left, subsets) if mark and Path(left).exists() else (rest, "")


def _names(subsets: str, text: str) -> tuple[str, ...]:
    names = tuple(subsets.split("/")) if subsets else ()
    if not all(names):
        raise ConfigError(f"dataset {text}: an empty subset name in :{subsets}; separate names by one slash")
    return names
