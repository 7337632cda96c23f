"""Every recipe that comes with the package runs from its first stage to its last, at toy size, with the real stages."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import media_models
import parallel_models
import pytest
import tiny_model
import tiny_tokenizer
import tiny_vlm

from postmill.cli import view
from postmill.cli.chain import RECIPES, read_steps
from postmill.cli.recipe import run, summary
from postmill.cli.schema import recipe_schema
from postmill.io.errors import ArtifactError, ConfigError
from postmill.io.manifest import load_artifact
from postmill.stages.table import STAGES

JUDGE = "def judge(row):\n    return float(sum(map(ord, row.output)) % 7)\n"
ADDED = {
    "train.steps": "1",
    "train.bins_per_step": "1",
    "train.rank": "2",
    "dpo.steps": "1",
    "dpo.rank": "2",
    "reward.threshold": "0",
    "quantize.parity": "off",
    "merge.parity": "off",
    "tuned.parity": "off",
    "aligned.parity": "off",
    "eval.max_new_tokens": "3",
}
"""What makes each recipe small, where it has the section. Nothing here changes what the stages are."""
REPLACED = {
    "tokenize.max_length": "90",
    "pairs.max_length": "90",
    "pairs.data": "pairs.jsonl",
    "pack.row_tokens": "96",
    "bins.row_tokens": "96",
    "train.ranks": "2",
    "train.cp": "2",
    "train.ep": "2",
    "train.gradient_checkpointing": "false",
    "score.top_k": "4",
    "rollout.samples": "3",
    "rollout.max_new_tokens": "5",
    "reward.functions": "judge.py:judge",
    "quantize.group_size": "-1",
}
"""The same, of what a recipe says itself."""
OWN = {
    "self-cognition": {"tokenize.model_name": "Mill", "tokenize.model_author": "us"},
    "embedding": {"train.pooling": "last"},
    "gguf": {"quantize.scheme": "q8_0"},
    "moe": {"train.bins_per_step": "2"},
    **{key: {"tokenize.max_length": "900", "pack.row_tokens": "1024"} for key in ("vision", "ocr", "grounding")},
}
"""What a recipe needs because the model here is another than its own."""
STEPS = [{"type": "text", "text": "one. ", "loss_scale": 1}, {"type": "text", "text": "two.", "loss_scale": 2}]
THOUGHT = "<think>\nin there\n</think>\n\nher"
DATA = {
    "pairs": [{"query": f"q{i}", "response": "the", "rejected_response": "her"} for i in range(4)],
    "labels": [{"query": f"q{i}", "response": "the her", "label": bool(i % 2)} for i in range(4)],
    "texts": [{"text": "the other day " * 12} for _ in range(3)],
    "questions": [{"query": f"what is {i}", "solution": str(i)} for i in range(3)],
    "calls": [{"query": "weather?", "response": '<tool_call>{"name": "w"}</tool_call>'} for _ in range(3)],
    "identity": [{"query": "who?", "response": "I am {{NAME}}, by {{AUTHOR}}"} for _ in range(3)],
    "chats": [{"query": f"q{i}", "response": "in there"} for i in range(4)],
    "classes": [{"text": f"the day {i}", "label": i % 2} for i in range(4)],
    "queries": [{"query": f"q{i}", "positive": f"in {i}", "negatives": [f"out {i}", f"not {i}"]} for i in range(4)],
    "steps": [
        {
            "messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": STEPS}],
            "label": [1, i % 2],
        }
        for i in range(3)
    ],
    "thoughts": [
        {"query": "and?", "response": ("in", THOUGHT)[i % 2], "history": [["q", THOUGHT], ["r", "the"]]}
        for i in range(4)
    ],
}
NEEDS = {
    **dict.fromkeys(("dpo", "simpo", "orpo", "reward-model"), "pairs"),
    **dict.fromkeys(("rejection", "pairs-from-rewards"), "questions"),
    **dict.fromkeys(("sft", "distill", "moe", "long-context", "sft-dpo"), "chats"),
    **dict.fromkeys(("embedding", "reranker"), "queries"),
    **dict.fromkeys(("quantize", "gguf"), "adapter"),
    **{"kto": "labels", "pretrain": "texts", "agent": "calls", "self-cognition": "identity"},
    **{"classifier": "classes", "prm": "steps", "thinking": "thoughts"},
    **{"vision": "pictures", "ocr": "pictures", "grounding": "boxes"},
}
"""Which rows each recipe is for."""
MODELS = {"moe": "mixture", "vision": "seeing", "ocr": "seeing", "grounding": "seeing"}
"""Recipes that are for another model than `base`."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("recipes")
    tiny_model.write_model(folder / "base", vocab_size=263)
    (folder / "base" / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.write_tokenizer(folder / "base")
    parallel_models.write(folder / "mixture", "qwen3-moe", vocab_size=263)
    tiny_tokenizer.write_tokenizer(folder / "mixture")
    for name, rows in DATA.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text(JUDGE)
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(world)
    yield world


def write_pictures(folder: Path) -> None:
    """A model that sees, rows with pictures for it, rows with boxes, and questions about pictures."""
    pytest.importorskip("torchvision")
    if (folder / "seeing").exists():
        return
    tiny_vlm.write_model(folder / "seeing", "qwen2_5_vl")
    tiny_vlm.write_rows(folder, number=3, pictures=1).rename(folder / "pictures.jsonl")
    objects = {"ref": ["cat"], "bbox": [[2, 3, 30, 40]]}
    boxes = {"query": "<image>where?", "response": "<ref-object>: <bbox>", "images": ["p0-0.png"], "objects": objects}
    question = {"question": "<image>where?", "images": ["p0-0.png"], "answer": "[2, 3, 30, 40]"}
    media_models.write_lines(folder / "boxes.jsonl", [boxes] * 3)
    media_models.write_lines(folder / "held-out.jsonl", [question])


def settings_of(name: str) -> dict[str, list[str]]:
    """What makes a recipe small."""
    said = tomllib.loads((RECIPES / f"{name}.toml").read_text())
    found = {key: value for key, value in ADDED.items() if key.partition(".")[0] in said}
    if said.get("train", {}).get("tuner") == "full":
        found.pop("train.rank")
    for key, value in REPLACED.items():
        section, _, option = key.partition(".")
        if option in said.get(section, {}):
            found[key] = value
    return {key: [value] for key, value in (found | OWN.get(name, {})).items()}


def run_recipe(name: str, output: Path, data: str) -> dict[str, Path]:
    """Run a chain, in this process but for steps of several ranks; the folder of each section."""
    from postmill.stages.runner import Options, run_stage

    settings = settings_of(name) | {"model": [MODELS.get(name, "base")], "data": [data]}
    steps = read_steps(RECIPES / f"{name}.toml", settings, output)
    if name == "quantize" and find_spec("compressed_tensors") is None:
        steps.pop()  # what reads the packed weights is not installed
    for step in steps:
        if step.ranks > 1:
            argv = [sys.executable, "-P", "-m", "postmill.cli.main", *step.argv]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        else:
            run_stage(step.stage, step.config, step.inputs, step.output, Options())
    return {step.name: step.output for step in steps}


CHAINS = sorted(path.stem for path in RECIPES.glob("*.toml") if "[loop]" not in path.read_text())
"""Recipes of `postmill run`; those of `postmill loop` run in test_loop.py."""


SEVERAL_RANKS = ("long-context", "moe")
"""Recipes that start processes side by side, each of which loads torch."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SEVERAL_RANKS)) for name in CHAINS]
)
def test_the_recipe_runs(here: Path, name: str) -> None:
    data = f"{NEEDS[name]}.jsonl"
    if MODELS.get(name) == "seeing":
        write_pictures(here)
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
