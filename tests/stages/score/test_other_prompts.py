"""Rows read with other prompts: a teacher that knows more than the student says something of the student's tokens."""

import json

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch", reason="scoring needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

from tiny_loop import write_world  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.io.rewards import RewardsReader  # noqa: E402
from postmill.io.rollouts import PROMPTS, ROLLOUTS  # noqa: E402
from postmill.io.schemas import PROMPTS_V1, ROLLOUTS_V1  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.reward import config as reward  # noqa: E402
from postmill.stages.rollout import config as rollout  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE, Score  # noqa: E402
from postmill.stages.tokenize.config import STAGE as TOKENIZE  # noqa: E402
from postmill.stages.tokenize.config import Tokenize  # noqa: E402


def prompts(world, name, texts):
    lines = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    (world / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"data": [str(world / f"{name}.jsonl")], "model": [str(world / "base")]}
    run_stage(TOKENIZE, make(Tokenize, for_="prompt"), given, world / name, Options(threads=1))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Answers to three short questions; richer questions, and two of them."""
    world = write_world(tmp_path_factory.mktemp("others"))
    prompts(world, "plain", ["a", "bb", "ccc"])
    prompts(world, "rich", ["a: the answer is 4", "b", "ccc, and think of the sea"])
    prompts(world, "few", ["a", "b"])
    given = {"prompts": [str(world / "plain")], "policy": [str(world / "base")]}
    cfg = make(rollout.Rollout, samples=2, max_new_tokens=5)
    run_stage(rollout.STAGE, cfg, given, world / "rollouts", Options(threads=1))
    return world


def score(world, name, prompts="rich", **options):
    given = {"rows": [str(world / "rollouts")], "model": [str(world / "base")], "prompts": [str(world / prompts)]}
    run_stage(STAGE, make(Score, **options), given, world / name, Options(threads=1))
    return world / name


def rows(path, schema):
    return pa.Table.from_batches(list(TableReader(path, schema))).to_pylist()


def test_the_answer_is_read_behind_the_other_prompt_and_stands_where_it_was(world):
    made = ScoresReader(score(world, "teacher", top_k=3, bin_tokens=40))
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32).eval()
    rich = {row["line"]: row["input_ids"] for row in rows(world / "rich" / PROMPTS, PROMPTS_V1)}
    for number, row in enumerate(rows(world / "rollouts" / ROLLOUTS, ROLLOUTS_V1)):
        start, ids = row["prompt_length"], row["input_ids"]
        answer, prompt = ids[start:], rich[row["line"]]
        with torch.no_grad():
            logp_TV = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        wanted = [float(logp_TV[len(prompt) + t - 1, token]) for t, token in enumerate(answer)]
        found = made.tokens(np.array([number]), np.array([len(ids)]), "logp")
        assert np.isnan(found[:start]).all()
        assert found[start:] == pytest.approx(wanted, abs=2e-5)
        top = made.top(np.array([number]), np.array([len(ids)]), "top_logp")[start:]
        assert top[:, 0] == pytest.approx(
            [float(logp_TV[len(prompt) + t - 1].max()) for t in range(len(answer))], abs=2e-5
        )


def test_what_it_says_is_a_teacher_to_reward(world):
    """On-policy self-distillation: each token's advantage is what the richer prompt makes of it."""
    teacher = ScoresReader(score(world, "opd"))
    given = {"rollouts": [str(world / "rollouts")], "teacher": [str(world / "opd")]}
    cfg = make(reward.Reward, advantage="opd")
    run_stage(reward.STAGE, cfg, given, world / "rewards", Options(threads=1))
    reader = RewardsReader([world / "rewards"], [load_artifact(world / "rollouts")])
    for number, row in enumerate(rows(world / "rollouts" / ROLLOUTS, ROLLOUTS_V1)):
        at, length = np.array([number]), np.array([len(row["input_ids"])])
        found = reader.tokens("advantages", at, length)
        wanted = teacher.tokens(at, length, "logp") - reader.logp(at, length)
        assert found[row["prompt_length"] :] == pytest.approx(wanted[row["prompt_length"] :], abs=1e-4)


def test_prompts_of_other_lines_and_what_does_not_go_together_are_refused(world):
    with pytest.raises(
        ArtifactError, match=r"few: has no prompt of line 3, where row 4 comes from \(2 such rows\)"
    ) as caught:
        score(world, "no", prompts="few")
    assert caught.value.code == 78
    with pytest.raises(ConfigError, match="leave out --partners, --where all, pictures and other heads"):
        score(world, "no", where="all")
