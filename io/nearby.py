"""What a mistyped path may have meant."""

import difflib
import itertools
from pathlib import Path

_MOST = 5000
"""Names that are looked at: a folder may hold millions."""


def nearby(path: Path) -> str:
    """`; did you mean X?` for the name beside a path that is most like it, or nothing."""
    try:
        names = [entry.name for entry in itertools.islice(path.parent.iterdir(), _MOST)]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
