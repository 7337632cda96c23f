"""The manifest: what an artifact is, what it was made from, and how to tell that it is whole.

A directory with a readable `manifest.json` whose files have the sizes it names is an artifact; anything else is not.
The manifest holds nothing that differs between two equal runs: wall times, host and paths are in `run.json` beside it.
So equal work has an equal manifest digest, and that digest is what a later stage records as its input.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from postmill.io.digest import canonical_json, digest_bytes, digest_file, digest_json
from postmill.io.errors import MISMATCH, NO_INPUT, ArtifactError
from postmill.io.json_file import NOT_JSON
from postmill.io.nearby import nearby

FORMAT = 1
MANIFEST = "manifest.json"
SIDE_FILE = "run.json"
"""Where the inputs lay, the time and the host: what may differ between equal runs."""
INSIDE = "tokens"
"""Folder of an artifact that keeps what came through a pipe: an artifact in itself; see `io/upstream.py`."""
SIDE_FILES = frozenset({MANIFEST, SIDE_FILE, f"{INSIDE}/{SIDE_FILE}", "timing.jsonl", "loss.png"})
"""Files an artifact may hold that its manifest does not vouch for."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One data file of an artifact: path relative to it, size in bytes, digest."""

    path: str
    bytes: int
    digest: str


class InputEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input: the port it came in by, its kind, its digest, and the commit of a hub it was fetched from, if it was.

    The source is a note: neither content keys nor manifest digests cover it, since equal bytes from a folder make the
    same artifact.
    """

    port: str
    kind: str
    digest: str
    source: str = ""
    """`hf:owner/name@commit`"""


class Counts(msgspec.Struct, forbid_unknown_fields=True):
    """The row law: `kept + truncated + dropped = rows_in`. `masked` counts kept rows that lost a trained turn."""

    rows_in: int = 0
    kept: int = 0
    truncated: int = 0
    masked: int = 0
    dropped: dict[str, int] = {}

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())

    def is_balanced(self) -> bool:
        return self.kept + self.truncated + self.num_dropped == self.rows_in

    def describe(self) -> str:
        """`1,000 rows in: 990 kept, 6 truncated, 4 dropped (3 too_long, 1 empty), 12 masked`."""
        parts = [f"{self.kept:,} kept"]
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated")
        if self.dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))
            parts.append(f"{self.num_dropped:,} dropped ({reasons})")
        if self.masked:
            parts.append(f"{self.masked:,} masked")
        return f"{self.rows_in:,} rows in: {', '.join(parts)}"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module's text. `config` is fully resolved; `digests` names tokenizer, template and the like."""

    format: int = FORMAT
    kind: str
    stage: str
    stage_version: int
    key: str
    config: dict[str, Any]
    inputs: list[InputEntry] = []
    files: list[FileEntry] = []
    counts: Counts | None = None
    metrics: dict[str, Any] = {}
    digests: dict[str, str] = {}
    versions: dict[str, str] = {}

    def to_json(self) -> bytes:
        return _to_bytes(self)

    def digest(self) -> str:
        return manifest_digest(self.to_json())


class Artifact(msgspec.Struct, frozen=True):
    """A whole artifact on disk."""

    path: Path
    manifest: Manifest
    digest: str

    def file(self, name: str) -> Path:
        return self.path / name


def manifest_digest(data: bytes) -> str:
    """Digest of a manifest's bytes as they would be without the sources of its inputs."""
    head = msgspec.json.decode(data)
    sourced = [entry for entry in head["inputs"] if entry.pop("source", None)]
    return digest_bytes(_to_bytes(head) if sourced else data)


def _to_bytes(value: Any) -> bytes:
    return msgspec.json.format(canonical_json(value), indent=1) + b"\n"


def content_key(stage: str, stage_version: int, config: dict[str, Any], inputs: list[InputEntry]) -> str:
    """Name of the work, known before it is done: equal keys promise equal results.

    Order of inputs counts within a port (files are read in that order), not between ports.
    """
    ports = {port: [i.digest for i in inputs if i.port == port] for port in {i.port for i in inputs}}
    return digest_json({"stage": stage, "version": stage_version, "config": config, "inputs": ports})


def parse_manifest(data: bytes, place: str) -> Manifest:
    """Raises ArtifactError naming `place` when `data` is no manifest of a format we know."""
    try:
        head = msgspec.json.decode(data)
    except NOT_JSON as error:
        raise ArtifactError(f"{place}: not a manifest ({error}); make the artifact again") from error
    format_name = head.get("format") if isinstance(head, dict) else None
    if format_name != FORMAT:
        raise ArtifactError(f"{place}: format {format_name!r}, this version reads {FORMAT}; make it again", MISMATCH)
    try:
        return msgspec.convert(head, Manifest)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{place}: not a manifest ({error}); make the artifact again") from error


def recorded_paths(artifact: Artifact) -> dict[str, list[str]]:
    """Where the inputs of each port lay when the artifact was made, as far as its side file still tells: a hint."""
    try:
        paths = msgspec.json.decode((artifact.path / SIDE_FILE).read_bytes(), type=_Recorded).inputs
    except OSError:
        return {}
    except NOT_JSON:
        return {}
    return paths


class _Recorded(msgspec.Struct):
    inputs: dict[str, list[str]] = {}


def load_artifact(path: Path, kinds: tuple[str, ...] = ()) -> Artifact:
    """Open the artifact at `path`, checking that it is whole by file sizes, and that its kind is one of `kinds`.

    Raises ArtifactError (66) if there is none, (65) if a file is missing or has another size, (78) on another kind.
    """
    file = path / MANIFEST
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if not path.exists():
            remedy = nearby(path) or "; run the stage that makes it"
            raise ArtifactError(f"{path}: no such artifact{remedy}", NO_INPUT) from None
        maker = f": {command}" if (command := _maker(kinds)) else ""
        why = f"no manifest.json, so it is unfinished or no artifact; run the stage that makes it{maker}"
        raise ArtifactError(f"{path}: {why}", NO_INPUT) from None
    manifest = parse_manifest(data, str(file))
    if kinds and manifest.kind not in kinds:
        raise wrong_kind(path, manifest.kind, kinds)
    for entry in manifest.files:
        _check_size(path, entry)
    return Artifact(path, manifest, manifest_digest(data))


def _maker(kinds: tuple[str, ...]) -> str:
    from postmill.io.kinds import maker_of  # which loads Arrow: only an error needs it

    return maker_of(kinds[0]) if kinds else ""


def wrong_kind(path: Path, kind: str, kinds: tuple[str, ...]) -> ArtifactError:
    """The error for an artifact of a kind that does not go in, with the command that makes one that does."""
    maker = _maker(kinds)
    of_what = "your rows" if maker.startswith("postmill tokenize") else "it"
    remedy = f"; make {kinds[0]} of {of_what} with `{maker}`" if maker else ""
    return ArtifactError(f"{path}: kind is {kind}, expected {' or '.join(kinds)}{remedy}", MISMATCH)


def _check_size(path: Path, entry: FileEntry) -> None:
    parts = Path(entry.path).parts
    if not parts or ".." in parts or Path(entry.path).is_absolute():
        raise ArtifactError(f"{path / MANIFEST}: file {entry.path!r} lies outside the artifact; refuse it")
    try:
        size = (path / entry.path).stat().st_size
    except FileNotFoundError:
        raise ArtifactError(f"{path / entry.path}: missing; make the artifact again") from None
    if size != entry.bytes:
        raise ArtifactError(f"{path / entry.path}: {size} bytes, manifest says {entry.bytes}; make the artifact again")


def list_files(path: Path, known: Mapping[Path, str] | None = None) -> list[FileEntry]:
    """Entries of all data files under `path`, by name, digests computed now but for the `known` ones."""
    known = known or {}
    files = sorted(p for p in path.rglob("*") if p.is_file())
    names = [(p.relative_to(path).as_posix(), p) for p in files]
    return [
        FileEntry(name, p.stat().st_size, known.get(p) or digest_file(p)) for name, p in names if name not in SIDE_FILES
    ]


def verify_files(artifact: Artifact) -> list[str]:
    """Every way in which the files differ from the manifest, one line each; empty when whole."""
    named = {entry.path: entry for entry in artifact.manifest.files}
    faults = []
    for path, entry in named.items():
        if digest_file(artifact.path / path) != entry.digest:
            faults.append(f"{artifact.path / path}: content differs from the manifest")
    present = {p.relative_to(artifact.path).as_posix() for p in artifact.path.rglob("*") if not p.is_dir()}
    faults += [f"{artifact.path / name}: not in the manifest" for name in sorted(present - named.keys() - SIDE_FILES)]
    return faults
