"""The pictures of the README, made by the commands it shows.

usage: python docs/img/make.py MODEL [RUN]

MODEL: a folder, or a name on a hub; draws mask.svg, the first row of the demo. RUN: an artifact of train; draws
curve.svg.
"""

import html
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LINE, CHARACTER, MARGIN = 20, 8.43, 12
"""Height of a line and width of a character of 14 px monospaced type, in px."""


def postmill(*argv: str) -> str:
    argv = (sys.executable, "-P", "-m", "postmill.cli.main", *argv)
    return subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def mask(shown: str) -> str:
    """SVG of what `postmill show` prints without colour: text in `[weight|...]` is trained on."""
    rows: list[str] = []
    widest = x = y = 0
    for piece in re.split(r"(\[[\d.]+\|.*?\](?=\n|$))", shown.strip(), flags=re.S):
        trained = re.fullmatch(r"\[[\d.]+\|(.*)\]", piece, re.S)
        for number, text in enumerate((trained[1] if trained else piece).split("\n")):
            x, y = (0, y + 1) if number else (x, y)
            left, top = MARGIN + x * CHARACTER, MARGIN + y * LINE
            if trained and text:
                width = len(text) * CHARACTER
                rows.append(
                    f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{LINE}" fill="#8fd19e" rx="2"/>'
                )
            tone = "#111" if trained else "#666"
            # textLength: the same width in every font
            size = f'textLength="{len(text) * CHARACTER:.1f}" lengthAdjust="spacingAndGlyphs"'
            if text:
                rows.append(f'<text x="{left:.1f}" y="{top + 15}" fill="{tone}" {size}>{html.escape(text)}</text>')
            x += len(text)
            widest = max(widest, x)
    width, height = widest * CHARACTER + 2 * MARGIN, (y + 1) * LINE + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        'font-family="ui-monospace, monospace" font-size="14" xml:space="preserve">'
        '<rect width="100%" height="100%" fill="#fff"/>' + "".join(rows) + "</svg>\n"
    )


def main() -> int:
    if not 2 <= len(sys.argv) <= 3:
        sys.stderr.write(f"{__doc__}")
        return 2
    shown = postmill("show", "examples/demo/identity.jsonl", "-m", sys.argv[1], "-n", "1")
    lines = shown.split("\n")
    (HERE / "mask.svg").write_text(mask("\n".join([lines[0], *lines[2:]])), encoding="utf-8")  # without the raw row
    if len(sys.argv) == 3:
        postmill("plot", sys.argv[2], "-o", str(HERE / "curve.svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
