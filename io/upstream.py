"""What came through a pipe, kept inside what was made from it, so that its ledger and lineage are not lost.

`out/tokens/` is an artifact: the manifest, ledger and side file that the stream's trailer holds, and the table itself
where the stage has written it there.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from postmill.io.ledger import LEDGER
from postmill.io.manifest import INSIDE, MANIFEST, SIDE_FILE, list_files
from postmill.io.table import Trailer


def inside(artifact: Path) -> Path:
    """The folder for it, made if need be."""
    folder = artifact / INSIDE
    folder.mkdir(exist_ok=True)
    return folder


def keep_trailer(trailer: Trailer, folder: Path, known: Mapping[Path, str] | None = None) -> None:
    """Make `folder`, with the files in it, the artifact that the stream was. `known`: digests of files."""
    (folder / LEDGER).write_bytes(trailer.ledger)
    whole = msgspec.structs.replace(trailer.manifest, files=list_files(folder, known))
    if trailer.side:
        (folder / SIDE_FILE).write_bytes(trailer.side)
    (folder / MANIFEST).write_bytes(whole.to_json())
