"""What lies in the folder, looked at: curves of runs, memory a run would need, an artifact as the page of `view`."""

from pathlib import Path
from typing import Any

from postmill.cli.chain import Step, find_recipe, read_steps
from postmill.cli.page import plan
from postmill.cli.page.guard import Refused
from postmill.cli.page.places import Folder
from postmill.io.errors import ArtifactError, ConfigError

_CURVES = ("loss", "lr", "grad_norm", "tokens_per_second", "reward", "mixed", "nats", "entropy", "kl", "length")


def curves(output: Path) -> dict[str, Any]:
    """What the runs below an output have measured so far, as curves for the page, and how far they are."""
    from postmill.cli.plot import METRICS, names_in, read_metrics
    from postmill.stages.shared.chart import thin

    curves_of_runs: list[dict[str, Any]] = []
    for file in sorted({*output.glob(METRICS), *output.glob(f"*/{METRICS}")}):
        try:
            lines = read_metrics(str(file))
        except ArtifactError:  # none yet, or a line that is being written
            continue
        owner = file.parent.name.removesuffix(".checkpoints")
        names = [name for name in _CURVES if name in names_in(lines)]
        names += [name for name in names_in(lines) if name not in names]
        for name in names:
            points = [(float(line["step"]), float(line[name])) for line in lines if _is_number(line.get(name))]
            if points:
                curves_of_runs.append({"name": f"{owner}: {name}", "points": thin(points)})
    return {"curves": curves_of_runs}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def viewed(path: Path) -> bytes:
    """An artifact, or a folder of them, as one page. Raises Refused (404)."""
    from postmill.cli.view import page_of

    try:
        return page_of(path)
    except (ArtifactError, ConfigError) as error:
        raise Refused(404, str(error)) from None


def estimated(ask: plan.Ask, folder: Folder) -> dict[str, Any]:
    """What each training of the plan would need here. Raises Refused (400)."""
    from postmill.cli.estimate import needs, read

    planned = plan.read(ask, folder)
    if planned.faults:
        raise Refused(400, "\n".join(planned.faults))
    steps = read_steps(find_recipe(ask.recipe), plan.settings_of(ask), Path(ask.output), besides=("loop",))
    estimates = {}
    for step in steps:
        if step.stage.name == "train":
            try:
                estimates[step.name] = needs(read(_argv(step, steps)))
            except (ArtifactError, ConfigError) as error:
                raise Refused(400, str(error)) from None
    return {"trainings": estimates}


def _argv(step: Step, steps: list[Step]) -> list[str]:
    """`postmill estimate` for one training: by its bins if they are packed, else by how long they will be."""
    from postmill.io.manifest import MANIFEST
    from postmill.stages.shared.model_reference import find_model

    model = step.inputs.get("model", [""])[0]
    packed = step.inputs.get("packed", [""])[0]
    words = [packed] if packed and (Path(packed) / MANIFEST).is_file() else []
    made = next((one for one in steps if str(one.output) == packed), None)
    if not words and made is not None:
        words = ["--bin-tokens", str(made.config.row_tokens)]
    return [*words, "-m", str(find_model(model).path), *step.options]
