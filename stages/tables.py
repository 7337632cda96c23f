"""Names and what they stand for: a literal table that can be seen, and what other packages add to it.

A table maps a name to `module:attribute`, so that seeing it loads nothing. A package of somebody else's adds a name by
an entry point of the table's group; entry points are read only when a name is not in the table.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from postmill.io.errors import ConfigError


def closest(word: str, known: list[str]) -> str:
    """`; did you mean X?` for the known word nearest to `word`, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def added(group: str) -> dict[str, str]:
    """What installed packages add to the table of `group`: name -> `module:attribute`."""
    # brings fifty modules (email, csv, zipfile), which a name of ours need not wait for
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group=group)}


def find(what: str, group: str, table: Mapping[str, str], name: str) -> Any:
    """What `name` stands for, loaded. `what` is said in errors: `--tuner`.

    Raises ConfigError (2) for a name that neither the table nor a package has, naming all there are.
    """
    reference = table.get(name)
    if reference is None:
        others = added(group)
        if name not in others:
            names = [*table, *others]
            raise ConfigError(f"{what} {name}: no such name{closest(name, names)}; there are {', '.join(names)}")
        reference = others[name]
    return load(reference)


def load(reference: str) -> Any:
    """What `module:attribute` names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
