"""Rows with weights as text for a terminal, and as an HTML page that needs nothing else."""

import html
from collections.abc import Iterable, Iterator

from postmill.cli import show_media
from postmill.cli.show import Piece, Shown

_RESET, _DIM, _BOLD = "\x1b[0m", "\x1b[2m", "\x1b[1m"


def _paint(weight: float) -> str:
    """Terminal colour of a weight: dim for none, green for 1, cyan below, yellow above, red below zero."""
    if weight == 0:
        return _DIM
    if weight < 0:
        return "\x1b[97;41m"
    if weight == 1:
        return "\x1b[30;42m"
    return "\x1b[30;46m" if weight < 1 else "\x1b[30;43m"


def _visible(text: str) -> str:
    """Control characters, but not newlines and tabs, in a form that moves no cursor."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def to_terminal(row: Shown, *, colour: bool, ids: bool) -> str:
    """One row. Without colour, trained text stands in brackets with its weight: `[1|text]`."""
    lines = [f"{_BOLD}{row.title}{_RESET}\n" if colour else f"{row.title}\n"]
    if row.raw:
        lines.append(f"{_visible(row.raw)}\n")
    for piece in row.pieces:
        text = _visible(piece.text)
        if colour:
            # colour each line by itself: a background across a newline fills the rest of the line
            lines.append(
                "\n".join(f"{_paint(piece.weight)}{part}{_RESET}" if part else "" for part in text.split("\n"))
            )
        else:
            lines.append(text if piece.weight == 0 else f"[{piece.weight:g}|{text}]")
        if ids:
            lines.append(f" {piece.ids} ")
    return "".join(lines).rstrip("\n") + "\n\n"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title><style>
body {{ font: 14px/1.5 ui-monospace, monospace; margin: 2em auto; max-width: 100ch; color: #222; background: #fff; }}
h2 {{ font-size: 14px; margin: 2em 0 .5em; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; padding: .8em; border: 1px solid #ddd; border-radius: 4px; }}
.raw {{ color: #666; background: #fafafa; }}
.w0 {{ color: #888; }} .w {{ border-radius: 2px; }} .w sup {{ font-size: 9px; color: #555; }}
.medium {{ display: inline-block; color: #666; }} .medium svg {{ max-width: 100%; image-rendering: pixelated; }}
.box {{ fill: none; stroke: #e0218a; stroke-width: 2; }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818; }} pre {{ border-color: #444; }}
 .raw {{ background: #202020; }} .w {{ color: #111; }} }}
</style></head><body>
<h1>{title}</h1>
<p>Grey text is context. Coloured text is trained on: the deeper the colour, the higher the weight; red pushes away.
Hover for role, weight and ids. Frames on pictures are the boxes that texts name.</p>
{rows}
</body></html>
"""


def _style(weight: float) -> str:
    hue = 0 if weight < 0 else 130
    light = max(45.0, 90 - 15 * abs(weight))
    return f"background:hsl({hue} 60% {light:.0f}%)"


def _span(piece: Piece, copies: show_media.Copies, boxes: Iterator[list[show_media.Shares]]) -> str:
    if piece.medium is not None:
        return show_media.to_html(copies.show(piece.medium), next(boxes))
    text = html.escape(_visible(piece.text))
    about = html.escape(f"{piece.role or 'nobody'}, weight {piece.weight:g}, {len(piece.ids)} tokens: {piece.ids}")
    if piece.weight == 0:
        return f'<span class="w0" title="{about}">{text}</span>'
    mark = "" if piece.weight == 1 else f"<sup>{piece.weight:g}</sup>"
    return f'<span class="w" style="{_style(piece.weight)}" title="{about}">{text}{mark}</span>'


def to_html(title: str, rows: Iterable[Shown]) -> str:
    """A whole page. Pictures are small copies, of no more than a few megabytes together."""
    parts, copies = [], show_media.Copies()
    for row in rows:
        raw = f'<pre class="raw">{html.escape(_visible(row.raw))}</pre>' if row.raw else ""
        boxes = iter(row.boxes)
        body = "".join(_span(piece, copies, boxes) for piece in row.pieces)
        parts.append(f"<h2>{html.escape(row.title)}</h2>{raw}<pre>{body}</pre>")
    return _PAGE.format(title=html.escape(title), rows="\n".join(parts))
