"""Post-training for language models, milled in stages. Import the module you need by its full name.

Two functions are here for notebooks and other people's pipelines: `stage` runs a stage, `open` opens what one made.
Importing this loads nothing else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postmill.stages.door import Opened


def stage(
    name: str,
    *inputs: Any,
    output: Any,
    replace: bool = False,
    force: bool = False,
    quiet: bool = True,
    **options: Any,
) -> "Opened":
    """Run a stage and open what it made; what is up to date is not made again.

    inputs: paths, names on a hub, or artifacts that were opened, in the order of the command's words. Inputs that have
    a flag there are named by their port: `model=...`, `valid=...`, `scores={"ref": ...}`. All other names are options,
    as flags have them: `loss_scale="last_round"`, `tuner="lora"`, `rank=8`.

    output: the folder to make. replace: in place of what other inputs or options have made; force: in any case.

    Raises ConfigError, ArtifactError and StageError (`postmill.io.errors`), each with the exit code of the command.
    """
    from postmill.stages.door import run_as_function

    return run_as_function(name, *inputs, output=output, replace=replace, force=force, quiet=quiet, given=options)


def open(path: Any) -> "Opened":  # it is called postmill.open
    """The artifact at `path`, for Arrow, Polars, torch, Trainer and TRL. Raises ArtifactError (66) if there is none."""
    from postmill.stages.door import open_artifact

    return open_artifact(path)
