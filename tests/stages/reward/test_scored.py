"""A reward model as a reward function: `score` asks it, `reward --scores` reads what it said."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="scoring needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import pyarrow as pa  # noqa: E402
import tiny_model  # noqa: E402
from rollouts_table import row_of, write_rollouts  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.rollouts import REWARDS  # noqa: E402
from postmill.stages.reward.config import STAGE, Reward  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scored")
    tiny_model.write_model(folder / "base")
    torch.manual_seed(0)
    kind = transformers.AutoModelForSequenceClassification
    kind.from_pretrained(folder / "base", num_labels=1).save_pretrained(folder / "rm")
    rows = [row_of(prompt, sample, "7", num_tokens=3 + sample) for prompt in range(3) for sample in range(4)]
    rows[5] = row_of(1, 1, None)
    write_rollouts(folder / "rollouts", rows)
    write_rollouts(folder / "others", rows[:8])
    given = {"rows": [str(folder / "rollouts")], "model": [str(folder / "rm")]}
    run_stage(SCORE, Score(), given, folder / "liked", Options())
    return folder


def reward(world, target, cfg=Reward(), rollouts="rollouts", **given):  # noqa: B008  # a frozen struct
    run_stage(STAGE, cfg, {"rollouts": [str(world / rollouts)]} | given, target, Options(threads=1))
    return pa.ipc.open_file(target / REWARDS).read_all().to_pylist()


def test_the_reward_is_what_the_model_says_of_the_rollout(world, tmp_path):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(world / "rm").eval()
    found = reward(world, tmp_path / "rewards", scores=[f"liked={world / 'liked'}"])
    for number, line in enumerate(found):
        if number == 5:
            assert line["reward"] is None
            assert line["errors"][0]["reason"] == "rollout_failed"
            continue
        with torch.no_grad():
            said = float(model(torch.arange(5 + number % 4)[None]).logits[0, 0])
        assert line["reward"] == pytest.approx(said, rel=1e-4, abs=1e-5)
    group = [line["reward"] for line in found[:4]]
    advantages = np.array([line["advantage"] for line in found[:4]])
    assert (np.argsort(advantages) == np.argsort(group)).all()


def test_it_is_weighed_with_other_functions(world, tmp_path):
    scores = [f"liked={world / 'liked'}"]
    alone = reward(world, tmp_path / "alone", scores=scores)
    both = reward(world, tmp_path / "both", Reward(weights=[2.0, 0.5]), functions=["repetition"], scores=scores)
    for one, two in zip(alone, both, strict=True):
        if one["reward"] is not None:
            assert two["scores"] == [0.0, one["reward"]]
            assert two["reward"] == pytest.approx(0.5 * one["reward"])


def test_scores_of_other_rollouts_and_no_function_at_all_are_refused(world, tmp_path):
    with pytest.raises(ArtifactError, match="of other rollouts than these"):
        reward(world, tmp_path / "no", rollouts="others", scores=[f"liked={world / 'liked'}"])
    with pytest.raises(ConfigError, match="pass --func, --rubric, or --scores of a reward model"):
        reward(world, tmp_path / "no")
