"""The first rows of raw data as tokenize would make them, token by token, as `postmill view` draws rows."""

from typing import Any

import msgspec

from postmill.cli.page.guard import Refused
from postmill.cli.page.places import Folder
from postmill.cli.show import raw_rows
from postmill.cli.tool import Args
from postmill.cli.view import words_of
from postmill.io.errors import ArtifactError, ConfigError, StageError

_MOST_ROWS = 20


class Ask(msgspec.Struct, forbid_unknown_fields=True):
    """Which data, read by which model's tokenizer, with which options of tokenize (those that `show` has)."""

    data: str
    model: str
    options: dict[str, str] = {}
    rows: int = 5


def masks(ask: Ask, folder: Folder) -> dict[str, Any]:
    """Rows as blocks for the page. Raises Refused (400) with the line that the command would end with."""
    options = {"-m": folder.model(ask.model)}
    for name, value in ask.options.items():
        if value:
            options[f"--{name.replace('_', '-')}"] = folder.value(value)
    args = Args([folder.data(ask.data)], options)
    try:
        rows, encoder = raw_rows(ask.data, args, None, max(1, min(ask.rows, _MOST_ROWS)))
        blocks = []
        for row in rows:
            pieces = [
                ([word for word, _ in words], [ids for _, ids in words], piece.weight, piece.role)
                for piece in row.pieces
                for words in [words_of(piece.text, piece.ids, encoder)]
            ]
            blocks.append({"title": row.title, "place": row.title.split("  ")[0], "pieces": pieces, "raw": row.raw})
    except (ArtifactError, ConfigError, StageError) as error:
        raise Refused(400, str(error)) from None
    except OSError as error:
        raise Refused(400, f"{ask.data}: {error.strerror or error}") from None
    return {"rows": blocks}
