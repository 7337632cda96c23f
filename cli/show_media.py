"""Pictures, sounds and videos of rows as pages show them: their names, small pictures, and the boxes that texts name.

A page says where a file lay, and holds a small copy of it: never the file, and never more than `MOST_BYTES` of copies.
"""

import base64
import io
import json
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from postmill.io.errors import ArtifactError, one_line
from postmill.io.media import Medium, medium_of

if TYPE_CHECKING:
    from postmill.stages.shared.media.families.table import Family

MOST_SIDE = 320
"""Pixels of a copy's longer side."""
MOST_BYTES = 3_000_000
"""Of all copies of a page."""
MOST_BOXES = 100
"""Drawn on a picture."""
_SMALL = 128
"""Sides up to which a copy is the picture itself, to the last pixel."""
_NUMBER = r"(-?\d{1,6}(?:\.\d{1,6})?)"
Shares = tuple[float, ...]
"""Of a picture's width and height: x1, y1, x2, y2 of a box, x1, y1 of a point."""


class Shown(NamedTuple):
    """A medium as a page shows it."""

    about: str
    """What it is, where it lies, its size and tokens, on one line."""
    picture: str = ""
    """A small copy as a data URI; empty for sounds, and where there is none."""
    width: int = 0
    height: int = 0
    fault: str = ""
    """Why there is no copy."""


def media_of_row(row: dict[str, Any]) -> list[Medium]:
    """Those of a row of tokens, in its order; none in tables that were made for models of text."""
    return [medium_of(item) for item in row.get("media") or []]


def describe(medium: Medium) -> str:
    """One line: kind, place, size, tokens."""
    names = json.loads(medium.reference or "[]") if medium.kind == "video" else []
    place = f"{one_line(names[0], 80)} and {len(names) - 1} more" if names else one_line(medium.reference or "", 80)
    place = place or f"in the row ({medium.digest.hex()[:12]})"
    if medium.kind == "audio":
        size = f"{medium.width / max(medium.rate, 1):.2f} s"
    else:
        size = f"{medium.width} x {medium.height}"
    kind = {"image": "picture", "audio": "sound"}.get(medium.kind, medium.kind)
    return f"{kind} {place}, {size}, {medium.end - medium.start} tokens"


class BoxReader:
    """Finds boxes and points in texts, in the form in which a model's family writes them."""

    def __init__(self, family: "Family | None") -> None:
        members = family.members if family else {}
        marks = members.get("boxes")
        self._forms = [_pattern(marks[name]) for name in ("bbox", "point")] if marks else []
        self._is_resized = bool(marks and marks["space"] == "resized")
        self._patch = int(members.get("image", {}).get("rule", {}).get("patch", 1))

    def read(self, parts: Sequence[str | Medium]) -> list[list[Shares]]:
        """Of each medium of a row, given as texts and media in their order.

        A box is on the last picture before it, or on the first one, where none is before it.
        """
        media = [part for part in parts if isinstance(part, Medium)]
        found: list[list[Shares]] = [[] for _ in media]
        seen, texts = 0, [""]
        for part in parts:
            if isinstance(part, Medium):
                texts.append("")
            else:
                texts[-1] += part
        for index, text in enumerate(texts):
            seen = max(index - 1, 0)
            if media and media[seen].kind != "audio":
                found[seen] += self._of_text(text, media[seen])[: MOST_BOXES - len(found[seen])]
        return found

    def _of_text(self, text: str, medium: Medium) -> list[Shares]:
        sides = (medium.grid[2] * self._patch, medium.grid[1] * self._patch) if self._is_resized else (1000, 1000)
        numbers = [match.groups() for form in self._forms for match in form.finditer(text)]
        return [
            tuple(min(max(float(number) / max(sides[place % 2], 1), 0.0), 1.0) for place, number in enumerate(corner))
            for corner in numbers
        ]


def _pattern(form: str) -> re.Pattern[str]:
    """A form with `{x1}`, `{y1}` and so on as what finds it."""
    return re.compile(re.sub(r"\\\{[xy][12]\\\}", lambda _: _NUMBER, re.escape(form)))


class Copies:
    """Makes small copies, as long as there is room on the page."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._left = most_bytes
        self._made: dict[bytes, Shown] = {}

    def show(self, medium: Medium) -> Shown:
        """A medium, with its copy if it can be seen. A file that is gone or another one says so; nothing is raised."""
        if medium.digest not in self._made:
            self._made[medium.digest] = self._show(medium)
        return self._made[medium.digest]._replace(about=describe(medium))

    def _show(self, medium: Medium) -> Shown:
        if medium.kind == "audio":
            return Shown("")
        try:
            picture, width, height = _copy(medium)
        except ArtifactError as error:
            return Shown("", fault=one_line(str(error), 300))
        except ImportError as error:
            return Shown(
                "", fault=f"pictures are shown where the package pillow is installed ({error.name} is missing)"
            )
        if len(picture) > self._left:
            return Shown("", fault="left out: the page has as many pictures as it may hold")
        self._left -= len(picture)
        return Shown("", picture, width, height)


def _copy(medium: Medium) -> tuple[str, int, int]:
    """A small copy of a picture, or of a video's first frame, as a data URI; its width and height."""
    from postmill.stages.shared.media.decode import decode

    data, place = medium.frames()[0] if medium.kind == "video" else (medium.load(), medium.place)
    seen = decode(data, place)
    form, how = ("PNG", {}) if max(seen.size) <= _SMALL else ("JPEG", {"quality": 80})
    seen.thumbnail((MOST_SIDE, MOST_SIDE))
    out = io.BytesIO()
    seen.info = {}  # profiles and comments of the file are not copied
    seen.save(out, form, **how)
    text = base64.b64encode(out.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{text}", seen.width, seen.height


def to_html(shown: Shown, boxes: Sequence[Shares]) -> str:
    """A medium as an element that may stand in a text."""
    about = escape(f"{shown.about}{f' ({shown.fault})' if shown.fault else ''}")
    if not shown.picture:
        return f'<span class="medium">{about}</span>'
    width, height = shown.width, shown.height
    drawn = "".join(_drawn(box, width, height) for box in boxes)
    size = f'width="{width}" height="{height}"'
    return (
        f'<span class="medium"><svg viewBox="0 0 {width} {height}" {size} role="img"><title>{about}</title>'
        f'<image href="{shown.picture}" {size}/>{drawn}</svg><br>{about}</span>'
    )


def _drawn(box: Shares, width: int, height: int) -> str:
    x1, y1 = box[0] * width, box[1] * height
    if len(box) == 2:
        return f'<circle class="box" cx="{x1:.1f}" cy="{y1:.1f}" r="3"/>'
    wide, high = max(box[2] * width - x1, 0.0), max(box[3] * height - y1, 0.0)
    return f'<rect class="box" x="{x1:.1f}" y="{y1:.1f}" width="{wide:.1f}" height="{high:.1f}"/>'
