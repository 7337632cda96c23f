"""Environments and tools as inputs: code counts by its content."""

import os
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
    if not is_python and (port != "env" or path.suffix == ".py"):
        form = "file.py:Class, or a program that speaks lines of JSON" if port == "env" else "file.py:function"
        raise ConfigError(f"{flag} {reference}: expected {form}")
    if not path.is_file():
        raise ArtifactError(f"{flag} {reference}: {path}: no such file", NO_INPUT)
    if is_python:
        return [Input(port, "function", digest_json([name, path.read_text("utf-8")]), f"{path.name}:{name}", path)]
    if not os.access(path, os.X_OK):
        raise ConfigError(f"{flag} {reference}: is no program; make it executable: chmod +x {path}")
    return [Input(port, "function", digest_file(path), path.name, path)]
