"""`postmill diff`: the first stage and option in which two artifacts differ."""

import sys
from collections.abc import Iterator
from typing import Any

from postmill.cli.tool import find_parent, input_paths, need, open_artifact, parse
from postmill.io.errors import FAILED
from postmill.io.manifest import Artifact, Manifest

USAGE = """
Say where two artifacts come to differ: the earliest stage, and the option, input or version. Exit 1 if they do.

usage: postmill diff A B
"""


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item


def differences(a: Artifact, b: Artifact) -> list[str]:
    """Lines that name the differences of the earliest stages that differ; empty if the artifacts are equal."""
    if a.digest == b.digest:
        return []
    if a.manifest.stage != b.manifest.stage:
        return [f"{a.path} is made by {a.manifest.stage}, {b.path} by {b.manifest.stage}"]
    return _input_differences(a, b) or _own_differences(a.manifest, b.manifest)


def _input_differences(a: Artifact, b: Artifact) -> list[str]:
    """Differences of the inputs, as deep as their makers can be found."""
    reasons: list[str] = []
    stage, left, right = a.manifest.stage, input_paths(a), input_paths(b)
    for (entry_a, path_a), (entry_b, path_b) in zip(left, right, strict=False):
        if entry_a.digest == entry_b.digest:
            continue
        parent_a, parent_b = find_parent(entry_a, path_a, a.path), find_parent(entry_b, path_b, b.path)
        deeper = differences(parent_a, parent_b) if parent_a and parent_b else []
        short_a, short_b = entry_a.digest[:19], entry_b.digest[:19]
        reasons += deeper or [f"{stage}: input {entry_a.port}: {path_a or ''} {short_a} != {path_b or ''} {short_b}"]
    if len(left) != len(right):
        reasons.append(f"{stage}: {len(left)} inputs != {len(right)} inputs")
    return reasons


def _own_differences(a: Manifest, b: Manifest) -> list[str]:
    """Differences of two manifests of one stage with equal inputs: its version, its options, and so on."""
    if a.stage_version != b.stage_version:
        return [f"{a.stage}: version {a.stage_version} != {b.stage_version}"]
    for title, left, right in (
        ("option", a.config, b.config),
        ("digest of", a.digests, b.digests),
        ("version of", a.versions, b.versions),
        ("metric", a.metrics, b.metrics),
    ):
        flat_a, flat_b = dict(_flat(left)), dict(_flat(right))
        keys = sorted(flat_a.keys() | flat_b.keys())
        changed = [key for key in keys if flat_a.get(key) != flat_b.get(key)]
        if changed:
            return [f"{a.stage}: {title} {key}: {flat_a.get(key)!r} != {flat_b.get(key)!r}" for key in changed]
    files_a, files_b = ({f.path: f.digest for f in m.files} for m in (a, b))
    paths = sorted(p for p in files_a.keys() | files_b.keys() if files_a.get(p) != files_b.get(p))
    return [f"{a.stage}: equal inputs and options, other bytes in {', '.join(paths)}: work that does not repeat"]


def run(argv: list[str]) -> int:
    """0 and nothing if equal, 1 and a line for each first difference."""
    args = parse(argv, USAGE)
    if args is None:
        return 0
    need(args, 2, 2, USAGE)
    lines = differences(open_artifact(args.words[0]), open_artifact(args.words[1]))
    sys.stdout.write("".join(line + "\n" for line in lines))
    return FAILED if lines else 0
