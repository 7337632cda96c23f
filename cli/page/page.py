"""The page itself: one HTML file with its script, its style and its words in it. It holds nothing of the folder."""

from pathlib import Path

from postmill.cli.view_page import digest_source, read_text

HERE = Path(__file__).resolve().parent
_SCRIPTS = ("words.js", "parts.js", "form.js", "page.js")
_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Postmill</title><style>{style}</style></head>
{body}
<script>{script}</script></html>
"""


def build() -> tuple[bytes, str]:
    """The page, and the policy that lets nothing in but its own script and style, and nothing out but its questions."""
    script = read_text("draw.js") + "".join((HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    style = read_text("view.css") + (HERE / "page.css").read_text(encoding="utf-8")
    assert "</script" not in script and "</style" not in style
    policy = (
        f"default-src 'none'; script-src {digest_source(script)}; style-src {digest_source(style)}; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    body = (HERE / "page.html").read_text(encoding="utf-8")
    return _FRAME.format(style=style, script=script, body=body).encode(), policy
