"""A loss of one's own as an input: its file counts by its content."""

from pathlib import Path

from postmill.io.digest import digest_json
from postmill.io.errors import NO_INPUT, USAGE, ArtifactError, ConfigError
from postmill.stages.protocol import Input


def resolve(port: str, reference: str) -> list[Input]:
    """`file.py:name`. Raises ConfigError (2) for another form, ArtifactError (66) for a file that is not there."""
    file, separator, name = reference.rpartition(":")
    if not separator or not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"--objective {reference}: expected file.py:function", USAGE)
    path = Path(file)
    if not path.is_file():
        raise ArtifactError(f"--objective {reference}: {file}: no such file", NO_INPUT)
    return [Input(port, "function", digest_json([name, path.read_text("utf-8")]), f"{path.name}:{name}", path)]
