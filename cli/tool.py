"""What the tools share: a small parser of words and switches, and the search for an artifact's ancestors."""

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from postmill.io.errors import NO_INPUT, ArtifactError, ConfigError
from postmill.io.manifest import INSIDE, MANIFEST, Artifact, InputEntry, load_artifact, recorded_paths
from postmill.io.nearby import nearby
from postmill.stages.tables import closest


class Args(msgspec.Struct):
    """Positional words, and options by name (`""` for a switch)."""

    words: list[str]
    options: dict[str, str]

    def has(self, name: str) -> bool:
        return name in self.options


def parse(argv: list[str], usage: str, switches: tuple[str, ...] = (), valued: tuple[str, ...] = ()) -> Args | None:
    """Words and options of `argv`; None when help was asked for, and printed. Raises ConfigError (2)."""
    args = Args([], {})
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        if word in ("-h", "--help"):
            sys.stdout.write(usage.strip() + "\n")
            return None
        if name in valued:
            if not has_value and not rest:
                raise ConfigError(f"{name}: needs a value")
            args.options[name] = value if has_value else rest.pop(0)
        elif word in (*switches, "--debug"):
            args.options[word] = ""
        elif word.startswith("-") and word != "-" and not word.startswith("-:"):  # stdin, and a line of it
            raise ConfigError(f"{word}: no such flag{closest(word, [*switches, *valued])}")
        else:
            args.words.append(word)
    return args


def need(args: Args, least: int, most: int, usage: str) -> None:
    """Raises ConfigError (2) with the usage line unless the number of words fits."""
    if not least <= len(args.words) <= most:
        line = next(line for line in usage.splitlines() if line.startswith("usage:"))
        raise ConfigError(line)


def input_paths(artifact: Artifact) -> list[tuple[InputEntry, Path | None]]:
    """Inputs of an artifact with where they were when it was made, as far as its side file still tells."""
    paths = recorded_paths(artifact)
    seen: dict[str, int] = {}
    pairs: list[tuple[InputEntry, Path | None]] = []
    for entry in artifact.manifest.inputs:
        index = seen.get(entry.port, 0)
        seen[entry.port] = index + 1
        here = paths.get(entry.port, [])
        pairs.append((entry, Path(here[index]) if index < len(here) else None))
    return pairs


def find_parent(entry: InputEntry, hint: Path | None, child: Path) -> Artifact | None:
    """The artifact an input entry names, at its recorded place or beside the child; None if it is neither."""
    places = [hint] if hint else []
    places += [p for p in sorted(child.resolve().parent.iterdir()) if (p / MANIFEST).is_file()]
    places.append(child / INSIDE)  # what came through a pipe
    for place in places:
        if not (place / MANIFEST).is_file():
            continue
        try:
            artifact = load_artifact(place)
        except ArtifactError:
            continue
        if entry.digest in (artifact.digest, artifact.manifest.key):
            return artifact
    return None


def ancestors(artifact: Artifact, depth: int = 0) -> Iterator[tuple[int, InputEntry, Path | None, Artifact | None]]:
    """Every ancestor, depth first: depth, the entry that names it, its recorded path, and itself if it can be found."""
    for entry, path in input_paths(artifact):
        parent = find_parent(entry, path, artifact.path)
        yield depth + 1, entry, path, parent
        if parent is not None:
            yield from ancestors(parent, depth + 1)


def open_artifact(word: str) -> Artifact:
    """The artifact at a path given by a person. Raises ArtifactError (66)."""
    path = Path(word)
    if path.name == MANIFEST:
        path = path.parent
    if not path.exists():
        raise ArtifactError(f"{path}: no such artifact{nearby(path)}", NO_INPUT)
    return load_artifact(path)
