"""A loop whose reward takes two turns: a tiny model learns it from the environment's rewards."""

import json

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import pyarrow as pa  # noqa: E402
import tiny_model  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402

from postmill.cli import loop  # noqa: E402
from postmill.io.rollouts import ROLLOUTS  # noqa: E402
from postmill.io.schemas import ROLLOUTS_V1  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402

RECIPE = """
[warm_tokens]
stage = "tokenize"
data = "{folder}/warm.jsonl"
[warm_pack]
stage = "pack"
row_tokens = 128
[warm]
stage = "train"
tuner = "full"
bins_per_step = 1
epochs = 12
lr = 0.02
schedule = "constant"
[prompts]
stage = "tokenize"
for = "prompt"
data = "{folder}/asks.jsonl"
[rollout]
prompts = "prompts"
policy = "warm"
env = "{folder}/env.py:TwoTurns"
samples = 16
max_new_tokens = 3
max_turns = 2
[reward]
functions = "env"
advantage = "group_mean"
[pack]
rewards = "reward"
row_tokens = 512
[train]
objective = "rl"
rewards = "reward"
from = "warm"
tuner = "full"
lr = 0.01
[loop]
rounds = 6
prompts = 4
"""
ENV = """
class TwoTurns:
    def reset(self, row, seed):
        self.first = None
    def step(self, text, calls):
        if self.first is None:
            self.first = text
            return "and then?"
        return {"reward": float(self.first == "a" and text == "b"), "done": True}
"""


def test_a_reward_that_takes_two_turns_is_learned_and_what_was_told_is_not(tmp_path):
    torch.set_num_threads(1)
    base = tiny_model.write_model(tmp_path / "base", hidden_size=32, vocab_size=263, num_hidden_layers=2)
    (base / "chat_template.jinja").unlink()
    write_tokenizer(base)
    warm = []
    for first in "abcd":
        for second in "abcd":
            said = [("user", "go"), ("assistant", first), ("user", "and then?"), ("assistant", second)]
            warm.append({"messages": [{"role": role, "content": text} for role, text in said]})
    asks = [{"messages": [{"role": "user", "content": "go"}], "n": n} for n in range(4)]
    for name, rows in {"warm": warm, "asks": asks}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "loop.toml").write_text(RECIPE.format(folder=tmp_path))
    words = [tmp_path / "loop.toml", "-m", base, "-o", tmp_path / "out", "--threads", "1", "-q"]
    assert loop.run([str(word) for word in words]) == 0
    found = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert found[-1]["reward"] > 2 * found[0]["reward"] > 0
    assert all(line["mismatch"] < 1e-4 for line in found)
    rows = pa.Table.from_batches(
        list(TableReader(tmp_path / "out" / "rounds" / "00000" / "rollout" / ROLLOUTS, ROLLOUTS_V1))
    ).to_pylist()
    for row in rows:
        if len(row["sampled"]) < 2:
            continue
        (first, second) = row["sampled"]
        assert [span["start"] for span in row["spans"]] == [first["start"], second["start"]]
        assert second["start"] - first["end"] > len("and then?")
        assert (
            row["trained_tokens"] == len(row["logp"]) == first["end"] - first["start"] + second["end"] - second["start"]
        )
