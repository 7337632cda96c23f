"""The loop on a CPU: each question has one right word, none is asked and trained on, and the recipe makes rounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from postmill.cli.loop import read_plan

GRPO = Path(__file__).resolve().parents[2] / "examples" / "grpo"


def test_questions_have_their_solutions_and_none_stands_twice(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(GRPO / "kth.py"), str(tmp_path)], check=True)
    seen: set[str] = set()
    for name, count in {"warm": 48, "held_out": 96, "ask": 4000}.items():
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) == count
        for row in rows:
            question = row["messages"][1]["content"]
            words, place = question.removeprefix("List: ").split(". Say the word at place ")
            right = row["messages"][2]["content"] if name == "warm" else row["solution"]
            assert right == words.split(", ")[int(place.removesuffix(".")) - 1]
            assert question not in seen
            seen.add(question)


def test_the_recipe_makes_rounds_and_measures_held_out_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = read_plan(GRPO / "kth.toml", {}, tmp_path / "out")
    assert [step.name for step in plan.before] == ["warm_tokens", "warm_pack", "warm", "prompts", "held_out"]
    assert [step.name for step in plan.rounds] == ["rollout", "reward", "pack", "train"]
    assert plan.rounds[0].inputs["policy"] == plan.rounds[3].inputs["from"] == [str(tmp_path / "out" / "warm")]
    assert {step.name for step in plan.measures} == set(plan.loop.measure)
    for step in plan.measures:
        if step.stage.name == "rollout":
            assert step.inputs["prompts"] == [str(tmp_path / "out" / "held_out")]


def test_the_recipe_with_a_critic_trains_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = read_plan(GRPO / "ppo.toml", {}, tmp_path / "out")
    assert [step.name for step in plan.rounds] == ["rollout", "values", "reward", "pack", "train", "critic"]
    assert plan.critic is not None and plan.critic.inputs["packed"] == plan.train.inputs["packed"]


def test_products_have_their_solutions_and_the_tool_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, str(GRPO / "calc.py"), str(tmp_path)], check=True)
    monkeypatch.syspath_prepend(str(GRPO))
    from calc import calc

    rows = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            for name in ("warm", "held_out", "ask")}  # fmt: skip
    assert len({row["messages"][1]["content"] for part in rows.values() for row in part}) == 48 + 96 + 1200
    for row in rows["held_out"]:
        a, _, b = row["messages"][1]["content"].removesuffix("?").split(" ")
        assert calc(f"{a}*{b}") == row["solution"]
    assert sum(len(row["messages"]) == 5 for row in rows["warm"]) == 10
    for text in ("__import__('os')", "2**999999", "1/0", "x"):
        with pytest.raises((ValueError, SyntaxError)):
            calc(text)


def test_the_recipe_with_the_tool_makes_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GRPO)
    plan = read_plan(GRPO / "calc.toml", {}, tmp_path / "out")
    assert plan.rounds[0].inputs["tools"] == ["calc.py:calc"]
    assert plan.rounds[0].config.turns.max_turns == 3
