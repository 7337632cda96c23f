"""Environments and tools as inputs: code counts by its content."""

import os
import shlex
import shutil
from pathlib import Path

from postmill.io.digest import digest_file, digest_json
from postmill.io.errors import NO_INPUT, ArtifactError, ConfigError
from postmill.stages.protocol import Input


def resolve(port: str, reference: str) -> list[Input]:
    """One environment or tool. Raises ConfigError (2) for what can be none, ArtifactError (66) for no such file."""
    flag = f"--{port}"
    file, _, name = reference.rpartition(":")
    is_python = file.endswith(".py") and name.isidentifier()
    path = Path(file if is_python else reference)
    if port == "env" and not path.is_file() and len(words := _words(reference)) > 1:
        return [_command(words, reference)]
    if not is_python and (port != "env" or path.suffix == ".py"):
        form = (
            "file.py:Class, a program that speaks lines of JSON, or its command line in quotes"
            if port == "env"
            else "file.py:function"
        )
        raise ConfigError(f"{flag} {reference}: expected {form}")
    if not path.is_file():
        raise ArtifactError(f"{flag} {reference}: {path}: no such file", NO_INPUT)
    if is_python:
        return [Input(port, "function", digest_json([name, path.read_text("utf-8")]), f"{path.name}:{name}", path)]
    if not os.access(path, os.X_OK):
        raise ConfigError(f"{flag} {reference}: is no program; make it executable: chmod +x {path}")
    return [Input(port, "function", digest_file(path), path.name, path)]


def _words(reference: str) -> list[str]:
    try:
        return shlex.split(reference)
    except ValueError as error:
        raise ConfigError(f"--env {reference}: {error}; quote it as for a shell") from None


def _command(words: list[str], reference: str) -> Input:
    """A program with arguments: words that are files count by their content. Raises ArtifactError (66)."""
    if shutil.which(words[0]) is None:
        raise ArtifactError(f"--env {reference}: {words[0]}: no such program", NO_INPUT)
    counted = [[Path(word).name, digest_file(Path(word))] if Path(word).is_file() else word for word in words]
    return Input("env", "function", digest_json(counted), reference)


def argv_of(item: Input) -> list[str] | None:
    """What to start for a program; None for what is written in Python."""
    if item.path is None:
        return shlex.split(item.name)
    return None if item.path.suffix == ".py" else [str(item.path.resolve())]
