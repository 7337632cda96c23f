"""`postmill lineage`: every ancestor of an artifact, with digests."""

import sys

import msgspec

from postmill.cli.tool import ancestors, need, open_artifact, parse

USAGE = """
List every ancestor of an artifact. One that has been moved or removed is named by its digest.

usage: postmill lineage ARTIFACT [--json]
"""


def run(argv: list[str]) -> int:
    """Print the tree, or one JSON object a line."""
    args = parse(argv, USAGE, switches=("--json",))
    if args is None:
        return 0
    need(args, 1, 1, USAGE)
    artifact = open_artifact(args.words[0])
    rows = [(0, artifact.manifest.kind, artifact.digest, str(artifact.path), artifact.manifest.stage)]
    for depth, entry, path, parent in ancestors(artifact):
        place = str(parent.path) if parent else str(path or "")
        rows.append((depth, entry.kind, entry.digest, place, parent.manifest.stage if parent else ""))
    names = ("depth", "kind", "digest", "path", "stage")
    for row in rows:
        if args.has("--json"):
            sys.stdout.write(msgspec.json.encode(dict(zip(names, row, strict=True))).decode() + "\n")
        else:
            depth, kind, digest, place, stage = row
            made = f"  by {stage}" if stage else ""
            sys.stdout.write(f"{'  ' * depth}{kind} {digest[:19]}  {place}{made}\n")
    return 0
