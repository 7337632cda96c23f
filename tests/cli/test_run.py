"""A recipe runs as its printed commands do: each stage once, only what changed, with the code of one that stopped."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import fake_hub
import pytest
import tiny_model
import tiny_tokenizer
from commands import MAIN, postmill

from postmill.cli.chain import RECIPES, read_steps
from postmill.io.errors import ConfigError

RECIPE = """
model = "base"
data = "chats.jsonl"
output = "out"

[tokenize]
system = "be kind"
template-kwargs = {thinking = false}
[pack]
row_tokens = 64
[train]
steps = 3
bins-per-step = 1
rank = 2
targets = ["q_proj", "v_proj"]
"""


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return postmill(*argv, cwd=folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tiny_model.write_model(folder / "base", vocab_size=263)
    (folder / "base" / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.write_tokenizer(folder / "base")
    rows = [{"query": f"q{i}", "response": "a"} for i in range(9)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "r.toml").write_text(RECIPE)
    return folder


def test_the_chain_runs_once_and_then_is_up_to_date(world: Path) -> None:
    first = run(world, "run", "r.toml")
    assert first.returncode == 0, first.stderr
    assert first.stdout == "out/train\n"
    table = [line.split() for line in first.stderr.splitlines()[-4:]]
    assert table[0] == ["stage", "status", "seconds", "output"]
    assert [(row[0], row[1], row[3]) for row in table[1:]] == [
        (name, "done", f"out/{name}") for name in ("tokenize", "pack", "train")
    ]
    again = run(world, "run", "r.toml")
    assert again.returncode == 0 and again.stderr.count("up to date") == 3

    # the printed commands, typed by hand, are the very same work
    plan = run(world, "run", "r.toml", "--dry-run").stdout.splitlines()
    assert len(plan) == 3
    for line in plan:
        typed = run(world, *shlex.split(line)[1:])
        assert typed.returncode == 0 and "up to date" in typed.stderr, f"{line}: {typed.stderr}"

    # what changed is refused, then made again, and only that
    changed = run(world, "run", "r.toml", "--set", "train.lr=3e-4")
    assert changed.returncode == 73
    table = [line.split() for line in changed.stderr.splitlines()]
    assert table[-2][:3] == ["train", "stale", "(73)"] and [row[0] for row in table[-4:-2]] == ["tokenize", "pack"]
    assert "train: out/train: stale: lr was None, is 0.0003; pass --replace to make it again" in changed.stderr
    report = json.loads(run(world, "run", "r.toml", "--set", "train.lr=3e-4", "--json", "-q").stdout)
    assert report["code"] == 73 and "lr was None, is 0.0003" in report["steps"][-1]["fault"]
    forced = run(world, "run", "r.toml", "--set", "train.lr=3e-4", "--replace", "--json")
    report = json.loads(forced.stdout)
    assert [step["status"] for step in report["steps"]] == ["up to date", "up to date", "done"]
    assert json.loads((world / "out/train/manifest.json").read_bytes())["key"]


def test_to_from_and_a_stage_that_fails(world: Path) -> None:
    done = run(world, "run", "r.toml", "-o", "part", "--to", "tokenize", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "part/tokenize\n", "")
    missing = run(world, "run", "r.toml", "-o", "part", "--from", "train", "-q")
    assert missing.returncode == 66 and "part/pack: no such artifact" in missing.stderr
    failed = run(world, "run", "r.toml", "-o", "part", "--set", "pack.row_tokens=3")
    assert failed.returncode == 65
    table = [line.split() for line in failed.stderr.splitlines()[-3:]]
    assert [row[:3] for row in table] == [["tokenize", "up", "to"], ["pack", "failed", "(65)"], ["train", "not", "run"]]


def test_a_stopped_stage_keeps_its_code_and_the_same_command_goes_on(world: Path) -> None:
    argv = ["run", "r.toml", "-o", "stop", "--set", "train.steps=60"]
    child = subprocess.Popen([*MAIN, *argv], cwd=world, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = world / "stop" / "train.checkpoints" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes()) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 75, errors
    assert "stopped, run again (75)" in errors
    # neither of these starts over: the checkpoint is of this very work
    on = run(world, *argv, "--replace")
    assert on.returncode == 0 and "going on after step" in on.stderr, on.stderr
    assert run(world, *argv).stderr.count("up to date") == 3


def test_a_stage_alone_takes_its_inputs_from_the_recipe(world: Path) -> None:
    text = RECIPE.replace("[pack]", "[pack]\ntokens = 'tokenize'").replace("[train]", "[train]\nvalid = 'pack'")
    (world / "alone.toml").write_text(text)
    assert run(world, "run", "alone.toml", "-o", "alone", "--to", "pack", "-q").returncode == 0
    (world / "alone.toml").write_text(text.replace('output = "out"', 'output = "alone"'))
    for stage, *more in (["tokenize"], ["pack"], ["train", "alone/pack"]):
        plan = run(world, stage, *more, "-o", f"alone/{stage}", "@", "alone.toml", "--dry-run")
        assert plan.returncode == 0, plan.stderr
        ports = [entry["port"] for entry in json.loads(plan.stdout)["inputs"]]
        assert (
            ports == {"tokenize": ["data", "model"], "pack": ["tokens"], "train": ["packed", "model", "valid"]}[stage]
        )
    words = run(world, "train", "alone/pack", "--valid", "out/pack", "-o", "x", "@", "alone.toml", "--dry-run")
    assert len(json.loads(words.stdout)["inputs"]) == 3  # what is typed stands in place of the recipe's
    (world / "alone.toml").write_text(text.replace('output = "out"', ""))
    lost = run(world, "pack", "-o", "x", "@", "alone.toml", "--dry-run")
    assert lost.returncode == 2 and "tokenize is a section; pass its folder" in lost.stderr


def test_a_branch_that_moves_while_a_chain_runs_gives_every_stage_one_model(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    model = tmp_path / "hub" / "owner" / "tiny"
    tiny_model.write_model(model, vocab_size=263)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.write_tokenizer(model)
    (tmp_path / "chats.jsonl").write_text('{"query": "q", "response": "a"}\n' * 3)
    with fake_hub.fake_hub(tmp_path / "hub") as hub:
        argv = [*MAIN, "run", "sft", "chats.jsonl", "-m", "owner/tiny", "-o", "out", "--to", "train"]
        sets = ["--set", "train.steps=1", "--set", "train.bins_per_step=1", "-q"]
        done = subprocess.run(
            [*argv, *sets], cwd=tmp_path, env=os.environ | hub.environment(tmp_path), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        moving = [request for request in hub.asked("GET", "/api/models/owner/tiny") if fake_hub.COMMIT not in request]
        assert len(moving) == 1, "the branch is asked once"
    sources = [
        entry.get("source", "")
        for stage in ("tokenize", "train")
        for entry in json.loads((tmp_path / "out" / stage / "manifest.json").read_bytes())["inputs"]
        if entry["port"] == "model"
    ]
    assert sources == [f"hf:owner/tiny@{fake_hub.COMMIT}"] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tokenise]\n", "[tokenise]: no such stage; did you mean tokenize?"),
        ("row_tokens = 3\n[pack]\n", "row_tokens: outside of a section"),
        ("[pack]\nrow_tokens = 3\n", "pack: no tokens; no section before makes tokens"),
        ("[tokenize]\nsede = 1\n[pack]\nrow_tokens = 0\n", "2: sede: no such option of"),
        ("[tokenize]\nsede = 1\n[pack]\nrow_tokens = 0\n", "4: row_tokens: 0"),
        ("[tokenize]\n[two]\nstage = 'pack'\ntokens = 'tokenize'\n", "(pack): --row-tokens is required"),
        ("[tokenize]\n[train]\npacked = 'tokenize'\n", "packed: tokenize makes tokens, expected packed"),
        ("[tokenize]\nmodel = 3\n", "model: 3: expected a text or a list of texts"),
        ("", "no sections; add one for each stage"),
    ],
)
def test_every_fault_of_a_recipe_is_said_before_anything_runs(text: str, words: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_steps(recipe, {"model": ["m"], "data": ["d.jsonl"]}, tmp_path / "out")
    assert words in str(caught.value)


def test_sections_of_one_stage_are_wired_by_name(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "[tokenize]\n[pack]\nrow_tokens = 8\n[train]\n[merge]\n[polish]\nstage = 'train'\nmodel = 'merge'\nranks = 2\n"
        "[eval]\ntested = 'polish'\nbefore = 'model'\nquestion = ['a b', 'c']\n"
    )
    steps = read_steps(recipe, {"model": ["base"], "data": ["a.jsonl", "b.jsonl"]}, Path("o"))
    assert [step.command for step in steps] == [
        "postmill tokenize a.jsonl b.jsonl -m base -o o/tokenize",
        "postmill pack o/tokenize -o o/pack --row-tokens 8",
        "postmill train o/pack -m base -o o/train",
        "postmill merge o/train -o o/merge",
        "postmill launch --ranks 2 train o/pack -m o/merge -o o/polish",
        "postmill eval o/polish --before base -o o/eval --question 'a b' --question c",
    ]


LOOPS = {path.stem for path in RECIPES.glob("*.toml") if "[loop]" in path.read_text()}
"""Recipes that `postmill loop` runs."""


@pytest.mark.parametrize(
    "recipe", [p for p in sorted(RECIPES.glob("*.toml")) if p.stem not in LOOPS], ids=lambda path: path.stem
)
def test_the_recipes_that_come_with_the_package_are_chains(recipe: Path) -> None:
    steps = read_steps(recipe, {"model": ["base"], "data": ["chats.jsonl"]}, Path("out"))
    assert len(steps) > 1 and all(step.needs for step in steps[1:])
