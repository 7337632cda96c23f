"""One self-contained HTML file out of tables, curves and a graph: opens from disk, asks nothing of any network.

Data is JSON, gzipped, in base64, so that no text of a row can end an element or a script. The policy of the page allows
the one script and the one style that are in it, by their digests, and nothing else.
"""

import base64
import gzip
import hashlib
import html
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).resolve().parent
LIMIT_BYTES = 5_000_000
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1><p class="about">{about}</p><main id="main"></main>
<script type="text/plain" id="data">{data}</script><script>{script}</script></body></html>
"""


class Column(msgspec.Struct, omit_defaults=True):
    """A column of a list. With `names`, `data` indexes them."""

    name: str
    data: list[Any]
    names: list[str] = []
    wide: bool = False


class Table(msgspec.Struct):
    """A list of rows, and details of some of them by their index."""

    name: str
    columns: list[Column]
    details: dict[str, list[dict[str, Any]]]
    total: int
    note: str = ""
    beyond: str = ""
    """What to do for the details of a row that has none here."""


class Page(msgspec.Struct):
    """All that is shown."""

    tables: list[Table]
    curves: list[dict[str, Any]]
    graph: dict[str, Any]
    summary: list[tuple[str, list[tuple[str, Any]]]]


def to_html(page: Page, title: str, about: str) -> bytes:
    """The file, below `LIMIT_BYTES`: details are left out from the end until it is."""
    while True:
        made = _to_html(page, title, about)
        if len(made) < LIMIT_BYTES or not any(table.details for table in page.tables):
            return made
        for table in page.tables:
            kept = list(table.details)[: len(table.details) // 2]
            table.details = {index: table.details[index] for index in kept}


def _to_html(page: Page, title: str, about: str) -> bytes:
    script, style = read_text("draw.js", "view.js"), read_text("view.css")
    data = base64.b64encode(gzip.compress(msgspec.json.encode(page), 6, mtime=0)).decode()
    policy = (
        f"default-src 'none'; script-src {digest_source(script)}; style-src {digest_source(style)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    texts = {"title": html.escape(title), "about": html.escape(about), "policy": policy}
    return _PAGE.format(style=style, script=script, data=data, **texts).encode()


def read_text(*names: str) -> str:
    """Files that lie beside this one, one after another."""
    return "".join((HERE / name).read_text(encoding="utf-8") for name in names)


def digest_source(text: str) -> str:
    """The word by which a content security policy allows one script or style."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
