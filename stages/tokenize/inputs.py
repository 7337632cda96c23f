"""What `tokenize` can be given: a dataset, or tokens to weigh again, in an artifact or from a pipe."""

from pathlib import Path

from postmill.io.manifest import MANIFEST, load_artifact
from postmill.stages.protocol import Input


def resolve(port: str, reference: str) -> list[Input]:
    """The runner's resolver. Raises ConfigError and ArtifactError."""
    path = Path(reference)
    if (path / MANIFEST).is_file():
        artifact = load_artifact(path, ("tokens",))
        return [Input(port, "tokens", artifact.digest, path.name, path, artifact)]
    from postmill.stages.tokenize.sources import resolve_inputs

    if reference == "-":
        from postmill.stages.tokenize.stdin import Rows, open_stdin

        stream = open_stdin()
        if not isinstance(stream, Rows):
            return [Input(port, "tokens", stream.header.key, "stdin", stream=stream)]
    return resolve_inputs(port, reference)
