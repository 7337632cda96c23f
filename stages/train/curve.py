"""The loss curve: as SVG by hand, the same bytes for the same numbers; as PNG where matplotlib is installed."""

import importlib.util
import math
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 28, 40
_POINTS = 2000
_TICKS = (1, 2, 2.5, 5, 10)

Curve = list[tuple[int, float]]


def curves(lines: list[dict[str, Any]]) -> dict[str, Curve]:
    """Training and validation loss by step; long runs are thinned to every k-th step."""
    found = {
        name: [(line["step"], line[key]) for line in lines if key in line]
        for name, key in (("loss", "loss"), ("validation", "valid_loss"))
    }
    return {name: points[:: max(1, len(points) // _POINTS)] for name, points in found.items() if points}


def svg(lines: list[dict[str, Any]]) -> str:
    """One picture: thin line the loss of each step, thick line its running mean, dots the validation loss."""
    found = curves(lines)
    points = [point for curve in found.values() for point in curve]
    steps = [step for step, _ in points]
    low, high, ticks = _axis([loss for _, loss in points])
    first, last = min(steps), max(*steps, min(steps) + 1)

    def at(point: tuple[float, float]) -> str:
        x = _LEFT + (point[0] - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - point[1]) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        ' font-size="12" fill="#444" role="img" aria-label="loss by step">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    for tick in ticks:
        y = at((first, tick)).split(",")[1]
        parts.append(f'<path d="M{_LEFT},{y}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{tick:g}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        parts.append(
            f'<text x="{at((step, low)).split(",")[0]}" y="{_HEIGHT - 14}" text-anchor="{anchor}">{step}</text>'
        )
    parts.append(f'<text x="{_WIDTH // 2}" y="{_HEIGHT - 14}" text-anchor="middle">step</text>')
    loss = found.get("loss", [])
    parts.append(_line([at(p) for p in loss], "#9bbcdf", 1))
    parts.append(_line([at(p) for p in running_mean(loss)], "#1f5fa8", 2))
    parts += [
        f'<circle cx="{x}" cy="{y}" r="3.5" fill="#c4501b"/>'
        for x, y in (at(p).split(",") for p in found.get("validation", []))
    ]
    legend = "loss and its running mean" + (", validation loss (dots)" if "validation" in found else "")
    parts.append(f'<text x="{_LEFT}" y="16">{legend}</text></svg>')
    return "\n".join(parts) + "\n"


def _line(points: list[str], colour: str, width: int) -> str:
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def running_mean(curve: Curve) -> Curve:
    """Exponential mean over about a twentieth of the curve, without the bias to its first value."""
    keep = 1 - 1 / max(1.0, len(curve) / 20)
    mean, weight, found = 0.0, 0.0, []
    for step, loss in curve:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        found.append((step, mean / weight))
    return found


def _axis(values: list[float]) -> tuple[float, float, list[float]]:
    """Round bounds around `values` and the ticks between them."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    magnitude = 10 ** math.floor(math.log10(span / 4))
    tick = next(magnitude * t for t in _TICKS if magnitude * t >= span / 4)
    start, end = math.floor(low / tick), max(math.ceil(high / tick), math.floor(low / tick) + 1)
    return start * tick, end * tick, [round(i * tick, 12) for i in range(start, end + 1)]


def write_curve(folder: Path, lines: list[dict[str, Any]]) -> None:
    """`loss.svg`, and `loss.png` (which the manifest leaves out: its bytes depend on matplotlib)."""
    (folder / "loss.svg").write_text(svg(lines), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, curve in curves(lines).items():
        axes.plot([p[0] for p in curve], [p[1] for p in curve], "." if name == "validation" else "-", label=name)
    axes.set_xlabel("step")
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)
