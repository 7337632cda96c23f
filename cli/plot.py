"""`postmill plot`: curves of one run or several, in the terminal or as SVG."""

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.tool import need, parse
from postmill.io.errors import BAD_DATA, NO_INPUT, ArtifactError, ConfigError
from postmill.io.json_file import NOT_JSON
from postmill.stages.shared.chart import Series, braille, svg, thin
from postmill.stages.tables import closest

USAGE = """
Draw what a run measured, step by step. Several runs are drawn over one another.

usage: postmill plot RUN... [--of NAME,NAME] [-o FILE.svg] [--list]

  RUN      an artifact of train, or the output of a run that is not finished
  --of     what to draw, a picture each: loss,lr,grad_norm (default: loss)
  -o       write one SVG file, in place of drawing in the terminal; with several names, FILE-NAME.svg
  --list   print the names that can be drawn
"""
METRICS = "metrics.jsonl"
_ROWS = 12
_WIDEST = 100


def read_metrics(run: str) -> list[dict[str, Any]]:
    """All lines that a run recorded. Raises ArtifactError (66) if there are none, (65) for a line that is damaged."""
    path = Path(run)
    places = [path / METRICS, path.parent / f"{path.name}.checkpoints" / METRICS, path]
    metrics_file = next((place for place in places if place.is_file()), None)
    if metrics_file is None:
        raise ArtifactError(f"{path}: no {METRICS} there; give an artifact of train, or the -o of a run", NO_INPUT)
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(metrics_file.read_bytes().splitlines(), 1):
        try:
            lines.append(msgspec.json.decode(line, type=dict))
        except NOT_JSON as error:
            raise ArtifactError(f"{metrics_file}:{number}: not a JSON object ({error})", BAD_DATA) from error
    return lines


def names_in(lines: list[dict[str, Any]]) -> list[str]:
    """What can be drawn: members that are numbers, but the step itself."""
    names = dict.fromkeys(key for line in lines for key, value in line.items() if _is_number(value))
    return [name for name in names if name != "step"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def series_of(runs: dict[str, list[dict[str, Any]]], name: str) -> list[Series]:
    """A series for each run that has `name`. What is measured now and then is drawn as dots."""
    series = []
    for colour, lines in enumerate(runs.values()):
        points = [(float(line["step"]), float(line[name])) for line in lines if _is_number(line.get(name))]
        if points:
            series.append(Series(thin(points), colour, is_dots=2 * len(points) <= len(lines)))
    return series


def run(argv: list[str]) -> int:
    """Draw, or write files and print their names."""
    args = parse(argv, USAGE, switches=("--list",), valued=("--of", "-o"))
    if args is None:
        return 0
    need(args, 1, 1000, USAGE)
    runs = {word: read_metrics(word) for word in args.words}
    known = list(dict.fromkeys(name for lines in runs.values() for name in names_in(lines)))
    if args.has("--list"):
        sys.stdout.write("".join(f"{name}\n" for name in known))
        return 0
    wanted = args.options.get("--of", "loss").split(",")
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--of {name}: no such measure{closest(name, known)}; there are {', '.join(known)}")
    for name in wanted:
        series = series_of(runs, name)
        legend = f"{name}: {', '.join(runs)}" if len(runs) > 1 else name
        if not args.has("-o"):
            columns = min(shutil.get_terminal_size().columns, _WIDEST) - 12
            sys.stdout.write(f"{legend}\n{braille(series, columns=max(columns, 20), rows=_ROWS)}")
            continue
        path = Path(args.options["-o"])
        path = path if len(wanted) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}")
        path.write_text(svg(series, legend=_escaped(legend), label=f"{name} by step"), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
