"""Curves as pictures: SVG written by hand, the same bytes for the same numbers, and Braille dots for a terminal."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

Curve = list[tuple[float, float]]
"""Points (x, y), x rising."""

COLOURS = ("#1f5fa8", "#c4501b", "#2e8540", "#7b3fa0", "#b8860b", "#0e7c86", "#a3195b", "#555555")
PALE = ("#9bbcdf", "#eab898", "#a3cfae", "#cdb3de", "#e3cf9a", "#9fd0d4", "#dfa3c0", "#bbbbbb")
"""Colours of series, and of the points behind a running mean, in the same order."""

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 28, 40
_POINTS = 2000
_TICKS = (1, 2, 2.5, 5, 10)
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a Braille character by column and row."""


class Series(NamedTuple):
    """What is drawn as one: points alone (`is_dots`), or a pale line with its running mean."""

    points: Curve
    colour: int = 0
    """Index into COLOURS."""
    is_dots: bool = False


def thin(points: Curve) -> Curve:
    """Every k-th point of a long curve."""
    return points[:: max(1, len(points) // _POINTS)]


def running_mean(curve: Curve) -> Curve:
    """Exponential mean over about a twentieth of the curve, without the bias to its first value."""
    keep = 1 - 1 / max(1.0, len(curve) / 20)
    mean, weight, means = 0.0, 0.0, []
    for x, y in curve:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        means.append((x, mean / weight))
    return means


def axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Round bounds around `values` and the ticks between them."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    magnitude = 10 ** math.floor(math.log10(span / 4))
    tick = next(magnitude * t for t in _TICKS if magnitude * t >= span / 4)
    start, end = math.floor(low / tick), max(math.ceil(high / tick), math.floor(low / tick) + 1)
    return start * tick, end * tick, [round(i * tick, 12) for i in range(start, end + 1)]


def svg(series: Sequence[Series], *, legend: str, label: str) -> str:
    """One picture of at least one point. `legend` is the line above it, `label` what a screen reader says."""
    points = [point for one in series for point in one.points]
    steps = [x for x, _ in points]
    low, high, ticks = axis([y for _, y in points])
    first, last = min(steps), max(*steps, min(steps) + 1)

    def at(point: tuple[float, float]) -> str:
        x = _LEFT + (point[0] - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - point[1]) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        f' font-size="12" fill="#444" role="img" aria-label="{label}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    for tick in ticks:
        y = at((first, tick)).split(",")[1]
        parts.append(f'<path d="M{_LEFT},{y}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{tick:g}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        parts.append(
            f'<text x="{at((step, low)).split(",")[0]}" y="{_HEIGHT - 14}" text-anchor="{anchor}">{step:g}</text>'
        )
    parts.append(f'<text x="{_WIDTH // 2}" y="{_HEIGHT - 14}" text-anchor="middle">step</text>')
    for one in series:
        if not one.is_dots:
            parts.append(_line([at(p) for p in one.points], PALE[one.colour % len(PALE)], 1))
            parts.append(_line([at(p) for p in running_mean(one.points)], COLOURS[one.colour % len(COLOURS)], 2))
    for one in series:
        if one.is_dots:
            places = [at(p).split(",") for p in one.points]
            fill = COLOURS[one.colour % len(COLOURS)]
            parts.append(_line([",".join(place) for place in places], PALE[one.colour % len(PALE)], 1))
            parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{fill}"/>' for x, y in places]
    parts.append(f'<text x="{_LEFT}" y="16">{legend}</text></svg>')
    return "\n".join(parts) + "\n"


def _line(points: list[str], colour: str, width: int) -> str:
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def braille(series: Sequence[Series], *, columns: int, rows: int) -> str:
    """All series in Braille, `rows` lines of `columns` characters, with both axes' bounds. Lines are running means."""
    curves = [one.points if one.is_dots else running_mean(one.points) for one in series]
    points = [point for curve in curves for point in curve]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high, _ = axis([y for _, y in points])
    across, down = 2 * columns - 1, 4 * rows - 1
    bits = [[0] * columns for _ in range(rows)]
    for one, curve in zip(series, curves, strict=True):
        places = [((x - first) / ((last - first) or 1) * across, (high - y) / (high - low) * down) for x, y in curve]
        for x, y in places if one.is_dots else _joined(places):
            row, column = min(round(y), down), round(x)
            bits[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    sides = [f"{high:>10.4g}", *[" " * 10] * (rows - 2), f"{low:>10.4g}"]
    lines = [f"{side} {''.join(chr(_BRAILLE + b) for b in row)}" for side, row in zip(sides, bits, strict=True)]
    return "\n".join([*lines, f"{'':>10} {first:<{columns - 8}g}{last:>8g}"]) + "\n"


def _joined(places: Curve) -> Curve:
    """Points with those on the lines between them, one for each dot that a line crosses."""
    found = places[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        steps = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
        found += [(x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps) for k in range(1, steps + 1)]
    return found
