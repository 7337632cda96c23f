"""Reward functions as inputs: a file of code counts by its content, a built-in one by its name and version."""

import importlib.util
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

from postmill.io.digest import digest_json
from postmill.io.errors import NO_INPUT, ArtifactError, ConfigError
from postmill.stages.protocol import Input
from postmill.stages.reward.functions import BUILT_IN, GROUP, REASONING_GYM
from postmill.stages.tables import added


def resolve(port: str, reference: str) -> list[Input]:
    """One function. Raises ConfigError (2) for an unknown name, ArtifactError (66) for a file that is not there."""
    if reference in BUILT_IN:
        _, version = BUILT_IN[reference]
        return [Input(port, "function", digest_json([reference, version]), reference)]
    others = added(GROUP)
    if reference in others:
        module, _, _ = others[reference].partition(":")
        found = importlib.util.find_spec(module)
        assert found is not None and found.origin is not None, module
        source = Path(found.origin).read_text("utf-8")
        return [Input(port, "function", digest_json([others[reference], source]), reference)]
    file, separator, name = reference.rpartition(":")
    if file == REASONING_GYM:
        try:
            return [Input(port, "function", digest_json([reference, version_of(REASONING_GYM)]), reference)]
        except PackageNotFoundError:
            raise ConfigError(f"--func {reference}: pip install reasoning-gym") from None
    if not separator or not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(
            f"--func {reference}: no such function; there are {', '.join([*BUILT_IN, *others])}; one of your own is"
            " file.py:name"
        )
    path = Path(file)
    if not path.is_file():
        raise ArtifactError(f"--func {reference}: {file}: no such file", NO_INPUT)
    return [Input(port, "function", digest_json([name, path.read_text("utf-8")]), f"{path.name}:{name}", path)]
