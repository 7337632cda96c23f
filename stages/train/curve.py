"""The loss curve of a run: as SVG, the same bytes for the same numbers; as PNG where matplotlib is installed."""

import importlib.util
from pathlib import Path
from typing import Any

from postmill.stages.shared.chart import Curve, Series, svg, thin


def curves(lines: list[dict[str, Any]]) -> dict[str, Curve]:
    """Training and validation loss by step; long runs are thinned to every k-th step."""
    found = {
        name: [(line["step"], line[key]) for line in lines if key in line]
        for name, key in (("loss", "loss"), ("validation", "valid_loss"))
    }
    return {name: thin(points) for name, points in found.items() if points}


def picture(lines: list[dict[str, Any]]) -> str:
    """Thin line the loss of each step, thick line its running mean, dots the validation loss."""
    drawn = curves(lines)
    series = [Series(drawn.get("loss", []))]
    if "validation" in drawn:
        series.append(Series(drawn["validation"], colour=1, is_dots=True))
    legend = "loss and its running mean" + (", validation loss (dots)" if "validation" in drawn else "")
    return svg(series, legend=legend, label="loss by step")


def write_curve(folder: Path, lines: list[dict[str, Any]]) -> None:
    """`loss.svg`, and `loss.png` (which the manifest leaves out: its bytes depend on matplotlib)."""
    (folder / "loss.svg").write_text(picture(lines), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6))
    FigureCanvasAgg(figure)
    # room for labels of any size, where a layout that measures them would draw everything twice
    axes = figure.add_axes((0.11, 0.14, 0.86, 0.82))
    for name, curve in curves(lines).items():
        axes.plot([p[0] for p in curve], [p[1] for p in curve], "." if name == "validation" else "-", label=name)
    axes.set_xlabel("step")
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)
