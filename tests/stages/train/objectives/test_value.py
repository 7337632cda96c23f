"""PPO with a critic as runs of its own: the critic's loss is TRL's, and rollouts go round through score and reward."""

import json

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from agreement import against  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.rewards import RewardsReader  # noqa: E402
from postmill.io.rollouts import REWARDS, ROLLOUTS  # noqa: E402
from postmill.io.schemas import REWARDS_V1, ROLLOUTS_V1  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.pack.config import STAGE as PACK  # noqa: E402
from postmill.stages.pack.config import Pack  # noqa: E402
from postmill.stages.reward.config import STAGE as REWARD  # noqa: E402
from postmill.stages.reward.config import Reward  # noqa: E402
from postmill.stages.rollout.config import STAGE as ROLLOUT  # noqa: E402
from postmill.stages.rollout.config import Rollout  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared.asked import Outputs  # noqa: E402
from postmill.stages.shared.batch import collate  # noqa: E402
from postmill.stages.tokenize.config import STAGE as TOKENIZE  # noqa: E402
from postmill.stages.tokenize.config import Tokenize  # noqa: E402
from postmill.stages.train.columns import BatchSource  # noqa: E402
from postmill.stages.train.config import STAGE as TRAIN  # noqa: E402
from postmill.stages.train.config import Train  # noqa: E402
from postmill.stages.train.objectives.rl import live_tokens  # noqa: E402
from postmill.stages.train.objectives.value_options import Value  # noqa: E402

FUNCTION = "def letters(row):\n    return sum(map(ord, row.output)) % 11 / 10\n"


def artifact(stage, cfg, path, **ports):
    run_stage(stage, cfg, {name: [str(p) for p in paths] for name, paths in ports.items()}, path, Options(threads=1))
    return path


def table(path, name, schema):
    return pa.Table.from_batches(list(TableReader(path / name, schema))).to_pylist()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Rollouts, a critic of their returns, its values, and the advantages that these make."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ppo")
    base = tiny_model.write_model(folder / "base", hidden_size=16, vocab_size=263, num_hidden_layers=1)
    (base / "chat_template.jinja").unlink()
    write_tokenizer(base)
    asks = [{"messages": [{"role": "user", "content": "n" * n}]} for n in range(5)]
    (folder / "asks.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in asks))
    (folder / "mine.py").write_text(FUNCTION)
    function = [f"{folder / 'mine.py'}:letters"]
    prompts = artifact(
        TOKENIZE, Tokenize(for_="prompt"), folder / "prompts", data=[folder / "asks.jsonl"], model=[base]
    )
    rollouts = artifact(
        ROLLOUT, make(Rollout, samples=3, max_new_tokens=6), folder / "rollouts", prompts=[prompts], policy=[base]
    )
    packed = artifact(PACK, Pack(row_tokens=96), folder / "packed", tokens=[rollouts])
    earned = artifact(
        REWARD, make(Reward, advantage="gae", lam=1.0), folder / "earned", rollouts=[rollouts], functions=function
    )
    fit = make(Train, objective="value", tuner="full", epochs=6, lr=0.02, schedule="constant")
    critic = artifact(TRAIN, fit, folder / "critic", packed=[packed], model=[base], rewards=[earned])
    values = artifact(SCORE, Score(), folder / "values", rows=[rollouts], model=[critic])
    ref = artifact(SCORE, Score(), folder / "ref", rows=[rollouts], model=[base])
    judged = artifact(
        REWARD,
        make(Reward, advantage="gae", kl_coef=0.1),
        folder / "judged",
        rollouts=[rollouts],
        functions=function,
        values=[values],
        ref=[ref],
    )
    return {"folder": folder, "function": function, "base": base, "rollouts": rollouts, "packed": packed} | {
        "critic": critic, "values": values, "ref": ref, "judged": judged, "earned": earned,
    }  # fmt: skip


def test_a_critic_learns_what_was_earned(world):
    lines = [json.loads(line) for line in (world["critic"] / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["error"] < 0.5 * lines[0]["error"]
    rows = table(world["earned"], REWARDS, REWARDS_V1)
    for row in rows:
        np.testing.assert_allclose(row["returns"], row["reward"], rtol=1e-6)  # no discount, one reward at the end
        assert set(row["values"]) == {0.0}


def test_values_are_read_where_a_token_is_predicted(world):
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(world["critic"], dtype=torch.float32).eval()
    reader = ScoresReader(world["values"])
    for number, row in enumerate(table(world["rollouts"], ROLLOUTS, ROLLOUTS_V1)):
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :, 0]
        found = reader.tokens(np.array([number]), np.array([row["length"]]), "values")
        start, end = row["prompt_length"], row["length"]
        np.testing.assert_allclose(found[start:end], logits[start - 1 : end - 1], atol=1e-5)
    with pytest.raises(ArtifactError, match="one for each token"):
        reader.values(np.array([0]))


def test_the_policy_learns_by_token_and_as_if_by_hand(world):
    out = world["folder"] / "policy"
    ports = {"packed": [world["packed"]], "model": [world["base"]], "rewards": [world["judged"]]}
    artifact(TRAIN, make(Train, objective="rl", rank=2, lr=1e-3, epochs=1, bins_per_step=9), out, **ports)
    [line] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = table(world["judged"], REWARDS, REWARDS_V1)
    flat = np.concatenate([row["advantages"] for row in rows])
    assert abs(flat.mean()) < 1e-6
    assert line["loss"] == pytest.approx(-flat.mean(), abs=1e-5)  # on-policy, every ratio is 1
    assert line["mismatch"] < 1e-5
    reader = PackedReader(world["packed"])
    source = BatchSource(reader, Value().needs, {}, RewardsReader([world["judged"]], reader.tokens))
    batch = source.load(np.arange(len(reader)))
    at = live_tokens(batch)
    by_row = {row: rows[row] for row in batch.row_R.tolist()}
    expected = np.concatenate([by_row[row]["returns"] for row in batch.row_R.tolist()])
    np.testing.assert_allclose(batch.columns["returns"][at], expected)


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_loss_of_a_critic_is_that_of_ppo(clip):
    """In float64 against TRL's lines: clipped values, the larger square, half its masked mean."""
    draw = torch.Generator().manual_seed(0)
    from postmill.io.packed import Bin

    weights = np.array([0, 1, 1, 1, 0, 1, 1], np.float32)
    rows = Bin(np.arange(7, dtype=np.int32), np.array([0, 1, 2, 3, 0, 1, 2], np.int32), np.array([0, 4, 7], np.int32),
               weights, np.arange(2))  # fmt: skip
    returns, old = (torch.randn(7, generator=draw, dtype=torch.float64).numpy() for _ in range(2))
    batch = collate([rows], {"advantage": np.array([0.5, -1.0]), "returns": returns, "values": old})
    values = torch.randn(5, 1, generator=draw, dtype=torch.float64, requires_grad=True)
    options = Value(clip=clip)
    loss = options.build().loss(Outputs(values_NC=values), batch, {"sampled": 5.0}, {})
    [gradient] = torch.autograd.grad(loss.total, [values])

    at = torch.from_numpy(np.flatnonzero(weights))
    target, before = (torch.from_numpy(x.astype(np.float32)).double()[at] for x in (returns, old))
    mine = values.detach()[:, 0].clone().requires_grad_()
    first = torch.square(mine - target)
    second = torch.square(torch.clamp(mine, before - clip, before + clip) - target) if clip else first
    expected = 0.5 * torch.max(first, second).mean()
    [wanted] = torch.autograd.grad(expected, [mine])
    against("value", "PPO's lines in TRL", (loss.total, gradient[:, 0]), (expected, wanted))
    assert abs(loss.total.item() - expected.item()) < 1e-12
    assert (gradient[:, 0] - wanted).abs().max() < 1e-12


def test_a_teacher_alone_makes_advantages(world):
    out = world["folder"] / "opd"
    artifact(
        REWARD, make(Reward, advantage="opd"), out, rollouts=[world["rollouts"]], teacher=[world["ref"]], functions=[]
    )
    rows = table(out, REWARDS, REWARDS_V1)
    assert all(row["kept"] and row["reward"] is None for row in rows)
    # the teacher is the policy itself: nothing to learn
    assert max(abs(value) for row in rows for value in row["advantages"]) < 1e-5


def test_what_does_not_go_together_is_said(world):
    rollouts, function = {"rollouts": [world["rollouts"]]}, {"functions": world["function"]}
    for options, ports, why in (
        ({"advantage": "grpo"}, {"values": [world["values"]]}, "only --advantage gae reads"),
        ({"advantage": "opd"}, {}, "opd needs --teacher"),
        ({"kl_coef": 0.1}, {}, "--kl-coef and --ref go together"),
    ):
        with pytest.raises(ConfigError, match=why):
            artifact(REWARD, make(Reward, **options), world["folder"] / "never", **rollouts, **function, **ports)
    hot = artifact(
        SCORE, Score(temperature=0.5), world["folder"] / "hot", rows=[world["rollouts"]], model=[world["base"]]
    )
    with pytest.raises(ArtifactError, match=r"log-probs at temperature 0\.5, the samples are of 1"):
        artifact(REWARD, make(Reward, kl_coef=0.1), world["folder"] / "never", **rollouts, **function, ref=[hot])
    plain = artifact(REWARD, Reward(), world["folder"] / "plain", **rollouts, **function)
    ports = {"packed": [world["packed"]], "model": [world["base"]], "rewards": [plain]}
    with pytest.raises(ConfigError, match="has no returns for a critic to learn"):
        artifact(TRAIN, make(Train, objective="value"), world["folder"] / "never", **ports)
