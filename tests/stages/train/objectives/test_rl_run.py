"""Samples, rewards, bins and updates, with the stages themselves on a tiny model; and laws that hold on the way."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from agreement import against  # noqa: E402
from forks import fork_ranks, wait_code  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.rewards import RewardsReader  # noqa: E402
from postmill.io.rollouts import ROLLOUTS  # noqa: E402
from postmill.io.schemas import ROLLOUTS_V1  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.options import changed, make  # noqa: E402
from postmill.stages.pack.config import STAGE as PACK  # noqa: E402
from postmill.stages.pack.config import Pack  # noqa: E402
from postmill.stages.reward.config import STAGE as REWARD  # noqa: E402
from postmill.stages.reward.config import Reward  # noqa: E402
from postmill.stages.rollout.config import STAGE as ROLLOUT  # noqa: E402
from postmill.stages.rollout.config import Rollout  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared import attention, hf  # noqa: E402
from postmill.stages.shared.forward import Forward  # noqa: E402
from postmill.stages.tokenize.config import STAGE as TOKENIZE  # noqa: E402
from postmill.stages.tokenize.config import Tokenize  # noqa: E402
from postmill.stages.train import loop  # noqa: E402
from postmill.stages.train.columns import BatchSource  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.rl_options import PRESETS, Rl  # noqa: E402
from postmill.stages.train.own_scores import OwnScores  # noqa: E402
from postmill.stages.train.parallel.replicated import Replicated  # noqa: E402
from postmill.stages.train.plan import Steps  # noqa: E402
from postmill.stages.train.step import accumulate  # noqa: E402

from . import laws  # noqa: E402

FUNCTION = """
def letters(row):
    if row.sample == 3 and row.columns["solution"] == "1":
        return None
    return sum(map(ord, row.output)) % 11 / 10
"""
TEMPERATURE = 0.7


def make_artifact(stage, cfg, path, **ports):
    run_stage(stage, cfg, {name: [str(p) for p in paths] for name, paths in ports.items()}, path, Options(threads=1))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six prompts, four samples of each at temperature 0.7; one sample has no reward."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rl")
    base = tiny_model.write_model(folder / "base", hidden_size=16, vocab_size=263, num_hidden_layers=1)
    (base / "chat_template.jinja").unlink()
    write_tokenizer(base)
    asks = [{"messages": [{"role": "user", "content": "n" * n}], "solution": str(n)} for n in range(6)]
    (folder / "asks.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in asks))
    (folder / "mine.py").write_text(FUNCTION)
    prompts = make_artifact(
        TOKENIZE, Tokenize(for_="prompt"), folder / "prompts", data=[folder / "asks.jsonl"], model=[base]
    )
    cfg = make(Rollout, samples=4, max_new_tokens=9, temperature=TEMPERATURE)
    for name, seed in {"rollouts": 0, "others": 1}.items():
        made = make_artifact(ROLLOUT, changed(cfg, seed=seed), folder / name, prompts=[prompts], policy=[base])
        rewards = folder / name.replace("rollouts", "rewards").replace("others", "other-rewards")
        make_artifact(REWARD, Reward(), rewards, rollouts=[made], functions=[f"{folder / 'mine.py'}:letters"])
    for name, row_tokens in {"packed": 64, "wide": 128}.items():
        make_artifact(PACK, Pack(row_tokens=row_tokens), folder / name, tokens=[folder / "rollouts"])
    alive = {"tokens": [folder / "rollouts"], "rewards": [folder / "rewards"]}
    make_artifact(PACK, Pack(row_tokens=64), folder / "alive", **alive)
    cfg = Score(temperature=TEMPERATURE)
    make_artifact(SCORE, cfg, folder / "ref", rows=[folder / "packed"], model=[base])
    return folder


def given(world, packed="packed", rewards="rewards", **ports):
    scored = [world / rewards] if rewards else []
    return {"packed": [world / packed], "model": [world / "base"], "rewards": scored} | ports


def train(world, out, cfg, **ports):
    return make_artifact(STAGE, cfg, world / out, **given(world, **ports))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rollouts(world):
    return pa.Table.from_batches(list(TableReader(world / "rollouts" / ROLLOUTS, ROLLOUTS_V1))).to_pylist()


def reader_of(world, name="packed"):
    reader = PackedReader(world / name)
    return reader, RewardsReader([world / "rewards"], reader.tokens)


def moved(world, seed=3):
    """The model away from where it sampled."""
    kernel = attention.choose("rows", torch.device("cpu"), torch.float32)
    net = hf.load_model(world / "base", "float32", attention=kernel)
    torch.manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def start_logp(world, reader):
    """What the model that sampled says, by token, at the temperature of the sampling."""
    scores = ScoresReader(world / "ref")
    rows, _ = reader.layout()
    return OwnScores(reader, scores.tokens(rows, reader.columns(rows, ["length"])["length"], "logp"))


def gradient_of(world, objective, *, packed="packed", micro_bins=1):
    """Loss, gradient and metrics of all samples as one step, some way from the start."""
    reader, rewards = reader_of(world, packed)
    accelerator = Accelerator(cpu=True)
    bins = -(-len(reader) // micro_bins) * micro_bins
    cfg = make(Train, objective=objective, bins_per_step=bins, micro_bins=micro_bins)
    scores = {"old": start_logp(world, reader), "ref": ScoresReader(world / "ref")}
    source = BatchSource(reader, objective.needs, scores, rewards)
    net = moved(world)
    forward = Forward(net, compute_dtype=torch.float32, backend="reference").train()
    step, layout = Steps(cfg, reader, 1, rewards)[0], Replicated(accelerator)
    got = accumulate(cfg, forward, objective.build(), source, step, layout=layout)
    return got, torch.cat([p.grad.flatten() for p in net.parameters()]), net


def test_a_first_step_has_ratio_one_no_divergence_and_no_mismatch(world):
    """And it is divided by the sampled tokens of the rows that have an advantage."""
    cfg = make(Train, objective=Rl(kl_coef=0.1), bins_per_step=99, epochs=3, lr=1e-2)
    train(world, "first", cfg, scores=[f"ref={world / 'ref'}"])
    first, _, last = lines(world / "first")
    assert first["ratio"] == pytest.approx(1, abs=1e-6)
    assert first["clipped"] == 0
    assert first["kl"] == pytest.approx(0, abs=1e-9)
    assert first["mismatch"] < 1e-3
    assert first["mismatch_k3"] < 1e-6
    assert first["unscored"] == first["mismatch_dropped"] == 0
    live = [row for row in rollouts(world) if not (row["sample"] == 3 and json.loads(row["extra"])["solution"] == "1")]
    assert len(live) == 23
    tokens = sum(row["trained_tokens"] for row in live)
    assert first["normaliser"] == tokens
    assert first["nats"] == pytest.approx(-sum(sum(row["logp"]) for row in live) / tokens, abs=1e-4)
    assert abs(last["ratio"] - 1) > 1e-3  # the start is still what ratios compare with
    assert last["kl"] > 1e-6


def test_a_step_is_that_of_trl_on_the_same_samples(world):
    """GRPOTrainer._compute_loss on padded rows, with log-probs of the model's own logits in float64."""
    pytest.importorskip("trl")
    from trl_grpo import grpo_loss

    reader, rewards = reader_of(world)
    rows = [r for r in range(reader.num_rows) if not math.isnan(rewards.advantage[r])]
    records = [rollouts(world)[row] for row in rows]
    width = max(record["trained_tokens"] for record in records)

    def padded(values):
        return torch.tensor([[*v, *[0.0] * (width - len(v))] for v in values], dtype=torch.float64)

    logp, entropy = [], []
    net = moved(world).double()
    for record in records:
        ids, start = torch.tensor(record["input_ids"]), record["prompt_length"]
        logits = (net(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1] / TEMPERATURE).log_softmax(-1)
        logp.append(logits.gather(1, ids[start:, None])[:, 0])
        entropy.append(-(logits.exp() * logits).sum(-1).detach())
    old = [start_logp(world, reader).tokens(np.array([row]), np.array([r["length"]]), "logp")[r["prompt_length"] :]
           for row, r in zip(rows, records, strict=True)]  # fmt: skip
    case = type("Case", (), {})()
    case.logp = padded([value.tolist() for value in logp])
    case.entropy, case.old, case.ref = padded([e.tolist() for e in entropy]), padded(old), padded(old)
    case.engine = padded([record["logp"] for record in records])
    case.mask = padded([[1.0] * record["trained_tokens"] for record in records])
    case.advantage = torch.from_numpy(rewards.advantage[rows])
    asked = {"level": "token", "delta": None, "quantile": 1.0, "off_policy": None, "unbiased": True}
    for loss_type, share, extra in (
        ("dapo", "token_mean", {"beta": 0.1, "mismatch": "sequence_mask"}),
        ("grpo", "seq_mean_token_mean", {"beta": 0.0, "mismatch": "token_truncate"}),
        ("dr_grpo", "seq_mean_token_sum_norm", {"beta": 0.0, "mismatch": None}),
    ):
        want, to_logp = grpo_loss(case, loss_type, **asked | extra)
        mismatch = extra["mismatch"] or "none"
        cfg = Rl(share=share, max_tokens=16, kl_coef=extra["beta"], mismatch=mismatch)
        got, gradient, _ = gradient_of(world, cfg)
        assert float(got.loss) == pytest.approx(float(want), rel=1e-4, abs=1e-6)
        net.zero_grad()
        chained = sum((g[: len(v)] * v).sum() for g, v in zip(to_logp, logp, strict=True))
        chained.backward(retain_graph=True)
        expected = torch.cat([p.grad.flatten() for p in net.parameters()]).float()
        assert float((gradient - expected).abs().max()) < 1e-4 * float(expected.abs().max())


VARIANTS = {
    "dapo": Rl(kl_coef=0.05, entropy_coef=0.01),
    "grpo": PRESETS["grpo"],
    "gspo": PRESETS["gspo"],
    "prompts": Rl(share="group_mean_token_mean"),
    "entropy": Rl(entropy_quantile=0.4),
    "clip-cov": Rl(surrogate="clip_cov", cov_share=0.2, cov_low=-0.5),
    "kl-cov": Rl(surrogate="kl_cov", cov_share=0.2, old="current"),
    "off-policy": Rl(off_policy_limit=0.01, mismatch="geometric_mask", mismatch_low=0.5),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_neither_micro_batches_nor_packing_nor_dead_rows_change_a_step(world, name):
    """`alive` was packed without the row that has no advantage; `packed` and `wide` hold it."""
    want, expected, _ = gradient_of(world, VARIANTS[name])
    assert float(expected.abs().max()) > 1e-3
    for options in ({"micro_bins": 2}, {"micro_bins": 4}, {"packed": "wide"}, {"packed": "alive"}):
        got, gradient, _ = gradient_of(world, VARIANTS[name], **options)
        against("rl", laws.CUTS, (got.loss, gradient), (want.loss, expected))
        torch.testing.assert_close(got.loss, want.loss, rtol=1e-6, atol=1e-7)
        assert float((gradient - expected).abs().max()) <= 3e-6 * float(expected.abs().max()), options
        for metric, value in want.metrics.items():
            torch.testing.assert_close(got.metrics[metric], value, rtol=1e-5, atol=1e-6)


def test_every_prompt_counts_the_same_also_where_a_step_has_a_part_of_it(world):
    reader, rewards = reader_of(world)
    cfg = make(Train, objective=Rl(share="group_mean_token_mean"), bins_per_step=2)
    steps = Steps(cfg, reader, 1, rewards)
    assert sum(steps[n].norms["live_groups"] for n in range(steps.per_epoch)) == pytest.approx(6)


def test_a_run_that_was_broken_off_compares_with_the_start_it_had(world, monkeypatch):
    """Equal bytes: log-probs of the start are in the checkpoint."""
    cfg = make(Train, objective=Rl(), bins_per_step=2, epochs=2, lr=1e-2, save_every=2)
    train(world, "whole", cfg)
    calls = []

    def fail_at_fourth(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise StageError("killed", 1)
        return accumulate(*args, **options)

    monkeypatch.setattr(loop, "accumulate", fail_at_fourth)
    with pytest.raises(StageError, match="killed"):
        train(world, "broken", cfg)
    monkeypatch.setattr(loop, "accumulate", accumulate)
    train(world, "broken", cfg)
    assert load_artifact(world / "broken").digest == load_artifact(world / "whole").digest
    assert abs(lines(world / "whole")[-1]["ratio"] - 1) > 1e-4


def test_log_probs_of_the_start_may_come_from_score(world):
    cfg = make(Train, objective=Rl(), bins_per_step=2, epochs=1, lr=1e-2)
    train(world, "own", cfg)
    train(world, "given", cfg, scores=[f"old={world / 'ref'}"])
    for mine, theirs in zip(lines(world / "own"), lines(world / "given"), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-5)
        assert theirs["ratio"] == pytest.approx(mine["ratio"], abs=1e-5)


@pytest.mark.parametrize("name", ["dapo", "entropy"])
def test_two_ranks_learn_as_one_does(world, name):
    objective = Rl() if name == "dapo" else VARIANTS[name]
    cfg = make(Train, objective=objective, tuner="full", bins_per_step=4, epochs=2, lr=1e-2)
    train(world, f"{name}-one", cfg)
    ports = {port: [str(path) for path in paths] for port, paths in given(world).items()}
    pids = fork_ranks([cfg] * 2, ports, world / f"{name}-two")
    assert [wait_code(pid) for pid in pids] == [0, 0]
    runs = (lines(world / f"{name}-{ranks}")[0] for ranks in ("two", "one"))
    against("rl", laws.RANKS, *((line["loss"], line["grad_norm"]) for line in runs))
    for one, two in zip(lines(world / f"{name}-one"), lines(world / f"{name}-two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-6)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert two["mismatch"] == pytest.approx(one["mismatch"], rel=1e-3, abs=1e-6)


def test_what_does_not_fit_is_refused(world):
    cfg = make(Train, objective="rl", bins_per_step=99, epochs=1)
    with pytest.raises(ArtifactError, match=r"rewards of other rollouts than .*/rollouts; run `postmill rew") as caught:
        train(world, "no", cfg, rewards="other-rewards")
    assert caught.value.code == 78
    with pytest.raises(ConfigError, match="make them with `postmill reward` and pass --rewards DIR") as caught:
        train(world, "no", cfg, rewards="")
    assert caught.value.code == 2
    with pytest.raises(ConfigError, match="only --objective rl learns from rewards"):
        train(world, "no", make(Train, bins_per_step=99))
    with pytest.raises(ConfigError, match="samples have no validation loss"):
        train(world, "no", cfg, valid=[world / "packed"])
    with pytest.raises(ConfigError, match="the model it calls ref; make them with `postmill score`"):
        train(world, "no", make(Train, objective=Rl(kl_coef=0.1), bins_per_step=99))
    with pytest.raises(ArtifactError, match="rewards of other rollouts"):
        make_artifact(
            PACK, Pack(row_tokens=64), world / "no", tokens=[world / "rollouts"], rewards=[world / "other-rewards"]
        )
    assert not (world / "no").exists()


def test_samples_of_narrowed_choices_need_a_loss_that_asks_no_sampler(world):
    made = make_artifact(
        ROLLOUT,
        make(Rollout, samples=4, max_new_tokens=4, top_k=5),
        world / "narrow",
        prompts=[world / "prompts"],
        policy=[world / "base"],
    )
    make_artifact(
        REWARD, Reward(), world / "narrow-rewards", rollouts=[made], functions=[f"{world / 'mine.py'}:letters"]
    )
    make_artifact(PACK, Pack(row_tokens=64), world / "narrow-packed", tokens=[made])
    ports = {"packed": "narrow-packed", "rewards": "narrow-rewards"}
    with pytest.raises(ConfigError, match="sampled with --top-p, --top-k or --min-p"):
        train(world, "no", make(Train, objective="rl", bins_per_step=99, epochs=1), **ports)
    train(world, "narrow-run", make(Train, objective=Rl(mismatch="none"), bins_per_step=99, epochs=1), **ports)


def test_an_engine_that_is_not_the_model_is_found_in_the_first_step(world, monkeypatch):
    """Its log-probs are off by 0.5 nats, as with another temperature or adapter."""
    honest = RewardsReader.logp
    monkeypatch.setattr(RewardsReader, "logp", lambda self, rows, lengths: honest(self, rows, lengths) - 0.5)
    cfg = make(Train, objective="rl", bins_per_step=99, epochs=1)
    with pytest.raises(
        ArtifactError, match=r"differ from this model's by 0\.5 nats a token, more than 0\.02"
    ) as caught:
        train(world, "no", cfg)
    assert caught.value.code == 78
    train(world, "told", make(Train, objective=Rl(max_mismatch=0), bins_per_step=99, epochs=1))


def test_lossdiff_computes_what_train_does(world, capsys):
    """At the start every ratio is 1, so losses differ by shares only; away from it they are those of a step."""
    from postmill.cli import lossdiff

    rows = [world / "rollouts", world / "rewards"]
    assert lossdiff.run([*map(str, rows), "--rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("sample ") == 2
    assert {"grpo", "dr_grpo", "fipo"} <= {line.split()[0] for line in shown.splitlines() if line}
    assert lossdiff.run([*map(str, rows), "--losses", "dapo,grpo,reinforce", "--json"]) == 0
    losses = json.loads(capsys.readouterr().out)["losses"]
    assert list(losses) == ["dapo", "grpo", "reinforce"]
    np.testing.assert_allclose(losses["dapo"]["gradient"], losses["reinforce"]["gradient"], atol=1e-9)
    moved(world).save_pretrained(world / "moved")
    cfg = Score(temperature=TEMPERATURE)
    now = make_artifact(SCORE, cfg, world / "now", rows=[world / "rollouts"], model=[world / "moved"])
    start = make_artifact(SCORE, cfg, world / "then", rows=[world / "rollouts"], model=[world / "base"])
    assert lossdiff.run([*map(str, rows), "--new", str(now), "--old", str(start), "--json"]) == 0
    losses = json.loads(capsys.readouterr().out)["losses"]
    for name in ("dapo", "grpo", "gspo"):
        got, _, _ = gradient_of(world, PRESETS[name])
        assert losses[name]["loss"] == pytest.approx(float(got.loss), rel=1e-4, abs=1e-6)
    with pytest.raises(ArtifactError, match="scores of other rows than"):
        lossdiff.run([*map(str, rows), "--new", str(world / "ref")])
    with pytest.raises(ConfigError, match="no such loss; there are grpo"):
        lossdiff.run([*map(str, rows), "--losses", "gppo"])
