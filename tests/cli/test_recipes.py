"""Every recipe that comes with the package runs from its first stage to its last, at toy size, with the real stages."""

import json
import re
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import tiny_tokenizer

from postmill.cli import view
from postmill.cli.chain import RECIPES, read_steps
from postmill.cli.recipe import run, summary
from postmill.cli.schema import recipe_schema
from postmill.io.errors import ArtifactError, ConfigError
from postmill.io.manifest import load_artifact
from postmill.stages.table import STAGES

JUDGE = "def judge(row):\n    return float(sum(map(ord, row.output)) % 7)\n"
SMALL = {
    "train.steps": ["1"],
    "train.bins_per_step": ["1"],
    "train.gradient_checkpointing": ["false"],
    "train.rank": ["2"],
    "pack.row_tokens": ["96"],
    "tokenize.max_length": ["90"],
    "score.top_k": ["4"],
    "rollout.samples": ["3"],
    "rollout.max_new_tokens": ["5"],
    "reward.functions": ["judge.py:judge"],
    "reward.threshold": ["0"],
    "quantize.group_size": ["-1"],
    "quantize.parity": ["off"],
    "merge.parity": ["off"],
    "eval.max_new_tokens": ["3"],
}
"""What makes each recipe small. Nothing here changes what the stages are."""
DATA = {
    "pairs": [{"query": f"q{i}", "response": "the", "rejected_response": "her"} for i in range(4)],
    "labels": [{"query": f"q{i}", "response": "the her", "label": bool(i % 2)} for i in range(4)],
    "texts": [{"text": "the other day " * 12} for _ in range(3)],
    "questions": [{"query": f"what is {i}", "solution": str(i)} for i in range(3)],
    "calls": [{"query": "weather?", "response": '<tool_call>{"name": "w"}</tool_call>'} for _ in range(3)],
    "identity": [{"query": "who?", "response": "I am {{NAME}}, by {{AUTHOR}}"} for _ in range(3)],
    "chats": [{"query": f"q{i}", "response": "in there"} for i in range(4)],
}
NEEDS = {
    **dict.fromkeys(("dpo", "simpo", "orpo", "reward-model"), "pairs"),
    **{"kto": "labels", "distill": "chats"},
    **dict.fromkeys(("rejection", "pairs-from-rewards"), "questions"),
    **{"pretrain": "texts", "agent": "calls", "self-cognition": "identity", "sft": "chats", "quantize": "adapter"},
}
"""Which rows each recipe is for."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("recipes")
    tiny_model.write_model(folder / "base", vocab_size=263)
    (folder / "base" / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.write_tokenizer(folder / "base")
    for name, rows in DATA.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text(JUDGE)
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(world)
    yield world


def run_recipe(name: str, output: Path, data: str) -> dict[str, Path]:
    """Run a chain in this process; the folder of each section."""
    from postmill.stages.runner import Options, run_stage

    recipe = RECIPES / f"{name}.toml"
    sections = set(re.findall(r"^\[([\w-]+)\]", recipe.read_text(), re.M))
    settings = {key: value for key, value in SMALL.items() if key.partition(".")[0] in sections}
    settings |= {"model": ["base"], "data": [data]}
    if name == "self-cognition":
        settings |= {"tokenize.model_name": ["Mill"], "tokenize.model_author": ["us"]}
    if 'tuner = "full"' in recipe.read_text():
        settings.pop("train.rank")
    steps = read_steps(recipe, settings, output)
    if name == "quantize" and find_spec("compressed_tensors") is None:
        steps.pop()  # what reads the packed weights is not installed
    for step in steps:
        run_stage(step.stage, step.config, step.inputs, step.output, Options())
    return {step.name: step.output for step in steps}


CHAINS = sorted(path.stem for path in RECIPES.glob("*.toml") if "[loop]" not in path.read_text())
"""Recipes of `postmill run`; those of `postmill loop` run in test_loop.py."""


@pytest.mark.parametrize("name", CHAINS)
def test_the_recipe_runs(here: Path, name: str) -> None:
    data = f"{NEEDS[name]}.jsonl"
    if NEEDS[name] == "adapter":
        data = str(run_recipe("sft", here / "for-quantize", "chats.jsonl")["train"])
    made = run_recipe(name, here / name, data)
    assert view.run([str(here / name), "-o", str(here / f"{name}.html")]) == 0
    for section, folder in made.items():
        load_artifact(folder)
        assert section in folder.name
    if "train" in made:
        weights = load_artifact(made["train"]).manifest
        assert weights.kind in ("model", "adapter") and weights.metrics["steps"] == 1


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is_how_to_run_it_and_what_it_costs(path: Path) -> None:
    head = path.read_text().partition("\n\n")[0]
    assert head.startswith(f"# {summary(path)}")
    command = "run" if path.stem in CHAINS else "loop"
    assert f"postmill {command} {path.stem} " in head and " -o " in head
    assert re.search(r"^# Cost \((estimated|measured)", head, re.M)
    assert all(len(line) <= 132 for line in head.splitlines())


def test_list_show_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == sorted(path.stem for path in RECIPES.glob("*.toml"))
    assert run(["show", "dpo"]) == 0
    assert capsys.readouterr().out == (RECIPES / "dpo.toml").read_text()
    assert run(["copy", "dpo"]) == 0 and run(["copy", "dpo", "mine.toml"]) == 0
    assert capsys.readouterr().out == "dpo.toml\nmine.toml\n"
    assert (tmp_path / "mine.toml").read_bytes() == (RECIPES / "dpo.toml").read_bytes()
    with pytest.raises(ArtifactError, match="exists; name another file"):
        run(["copy", "sft", "mine.toml"])
    for wrong in (["show", "dqo"], ["list", "x"], ["tell"], []):
        with pytest.raises(ConfigError):
            run(wrong)


def schema() -> dict[str, Any]:
    import importlib

    return recipe_schema({name: importlib.import_module(f"postmill.stages.{name}.config").STAGE for name in STAGES})


def test_the_schema_takes_every_recipe_and_refuses_what_run_refuses() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(validator.schema)
    for path in sorted(RECIPES.glob("*.toml")):
        faults = [error.message for error in validator.iter_errors(tomllib.loads(path.read_text()))]
        assert not faults, f"{path.name}: {faults}"
    for wrong in (
        "[pack]\nrow_token = 8",
        "[pack]\nrow_tokens = 0",
        "[tokenise]\nmax_length = 8",
        "[train]\nlr = 'high'",
        "[train]\nobjective = 'dbo'",
        "[two]\nstage = 'pack'\nrow_token = 8",
        "[merge]\nranks = 2",
    ):
        assert list(validator.iter_errors(tomllib.loads(wrong))), wrong
