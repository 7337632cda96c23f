"""One recipe makes the same artifacts by every program, also when each was told to stop in the middle."""

from pathlib import Path

import exports
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("equal")
    exports.write_world(folder)
    return folder


@pytest.fixture(scope="module")
def expected(world: Path) -> list[str]:
    """Digests of `postmill run`."""
    direct = exports.Run("run", world, world / "direct")
    told = direct.to_end()
    assert told.code == 0, told.said
    return direct.digests()


@pytest.mark.parametrize("form", exports.COMMANDS)
def test_a_program_that_is_stopped_and_started_again_makes_what_run_makes(
    form: str, world: Path, expected: list[str]
) -> None:
    program = exports.COMMANDS[form][:1]
    if program and exports.other(program[0]) is None:
        pytest.skip(f"{program[0]} is not installed; make programs")
    run = exports.Run(form, world, world / f"{form}-stopped")
    cut = run.stopped()
    if form == "slurm":  # the cluster itself starts the job again
        assert cut.code == 0 and "going on after step" in cut.said, cut.said
    elif form == "snakemake":  # it lets the stage that runs come to its end, and starts no other
        assert cut.code != 0 and run.is_done("train") and not run.is_done("merge"), cut.said
    else:
        assert cut.code != 0 and not run.is_done("train"), cut.said
    rest = run.to_end()
    assert rest.code == 0, rest.said
    assert form in ("slurm", "snakemake") or "going on after step" in rest.said, rest.said
    assert run.digests() == expected


@pytest.mark.parametrize("form", [form for form in exports.COMMANDS if form != "run"])
def test_a_program_makes_what_run_makes(form: str, world: Path, expected: list[str]) -> None:
    program = exports.COMMANDS[form][0]
    if exports.other(program) is None:
        pytest.skip(f"{program} is not installed; make programs")
    run = exports.Run(form, world, world / form)
    told = run.to_end()
    assert told.code == 0, told.said
    assert run.digests() == expected
