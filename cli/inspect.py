"""`postmill inspect`: what an artifact is, from its manifest alone."""

import sys
from typing import Any

import msgspec

from postmill.cli.tool import input_paths, need, open_artifact, parse
from postmill.io.manifest import Artifact

USAGE = """
Say what an artifact is: stage, options, inputs, rows, metrics.

usage: postmill inspect ARTIFACT [--json]

  --json   the manifest, as it is
"""


def _lines(value: Any, indent: int) -> list[str]:
    pad = " " * indent
    if not isinstance(value, dict):
        return [f"{pad}{value}"]
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{pad}{key}", *_lines(item, indent + 2)]
        else:
            shown = f"{item:,}" if isinstance(item, int) and not isinstance(item, bool) else item
            lines.append(f"{pad}{key:<{max(2, 26 - indent)}} {shown}")
    return lines


def describe(artifact: Artifact) -> str:
    """Several lines about an artifact, for people."""
    m = artifact.manifest
    lines = [f"{artifact.path}: {m.kind}, made by {m.stage} v{m.stage_version}", f"  digest {artifact.digest}"]
    lines.append(f"  bytes  {sum(f.bytes for f in m.files):,} in {len(m.files)} files")
    for entry, path in input_paths(artifact):
        lines.append(f"  input  {entry.port}: {entry.kind} {entry.digest[:19]} {path or ''}".rstrip())
    parts = [("rows", msgspec.to_builtins(m.counts) if m.counts else {}), ("options", m.config)]
    for title, table in [*parts, ("metrics", m.metrics), ("digests", m.digests), ("versions", m.versions)]:
        if table:
            lines += [f"  {title}", *_lines(table, 4)]
    return "\n".join(lines) + "\n"


def run(argv: list[str]) -> int:
    """Print the description."""
    args = parse(argv, USAGE, switches=("--json",))
    if args is None:
        return 0
    need(args, 1, 1, USAGE)
    artifact = open_artifact(args.words[0])
    sys.stdout.write(artifact.manifest.to_json().decode() if args.has("--json") else describe(artifact))
    return 0
