"""Pairs from packing over scoring to a trained adapter, with the stages themselves; and laws that hold on the way."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import json  # noqa: E402

import tiny_model  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from agreement import against  # noqa: E402
from forks import fork_ranks, wait_code  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.options import make, tag  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score import run as score_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared import attention, hf  # noqa: E402
from postmill.stages.shared.asked import Ask  # noqa: E402
from postmill.stages.shared.forward import Forward  # noqa: E402
from postmill.stages.train.columns import BatchSource  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.cpo_options import Cpo  # noqa: E402
from postmill.stages.train.objectives.dpo_options import Dpo  # noqa: E402
from postmill.stages.train.objectives.interface import Loss  # noqa: E402
from postmill.stages.train.objectives.needs import Needs  # noqa: E402
from postmill.stages.train.objectives.orpo_options import Orpo  # noqa: E402
from postmill.stages.train.objectives.pairs import row_sum  # noqa: E402
from postmill.stages.train.objectives.simpo_options import Simpo  # noqa: E402
from postmill.stages.train.parallel.replicated import Replicated  # noqa: E402
from postmill.stages.train.plan import Steps  # noqa: E402
from postmill.stages.train.step import accumulate, validate  # noqa: E402

from . import laws  # noqa: E402


def pairs(num_pairs, seed=0):
    """Chosen and rejected rows to the same few tokens."""
    rows = tiny_model.make_rows(2 * num_pairs, seed=seed, longest=16)
    for number, row in enumerate(rows):
        row |= {"pair_id": (number // 2).to_bytes(16, "big"), "side": number % 2, "margin": 0.5}
        for span in row["spans"]:
            span["weight"] = 1.0
        row["weight_sum"] = float(row["trained_tokens"])
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pairs")
    base = tiny_model.write_model(folder / "base")
    laws.write_twice(folder, "packed", base, pairs(12))
    tiny_model.write_packed(folder / "others", base, pairs(12, seed=4))
    tiny_model.write_packed(folder / "single", base, tiny_model.make_rows(8))
    for name, cfg in {"scores": Score(), "all": Score(where="all", entropy=True, collision=True)}.items():
        run_stage(SCORE, cfg, {"rows": [str(folder / "packed")], "model": [str(base)]}, folder / name, Options())
    return folder


def train(world, out, cfg, packed="packed", **given):
    ports = {"packed": [str(world / packed)], "model": [str(world / "base")]} | given
    return run_stage(STAGE, cfg, ports, world / out, Options())


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_scores_are_the_models_own_log_softmax_of_each_row_alone(world):
    model = hf.load_model(world / "base", "float32")
    reader, scores = PackedReader(world / "packed"), ScoresReader(world / "all")
    scores.check(reader)
    rows = np.arange(reader.num_rows)
    for row in rows:
        found = reader.token_rows.lay(rows[row : row + 1])
        ids = torch.from_numpy(found.input_ids.astype(np.int64))
        with torch.no_grad():
            logp_TV = model(ids[None]).logits[0, :-1].log_softmax(-1)
        want = {
            "logp": logp_TV.gather(1, ids[1:, None])[:, 0],
            "entropy": -(logp_TV.exp() * logp_TV).sum(-1),
            "collision": (2 * logp_TV).logsumexp(-1),
        }
        for name, values in want.items():
            got = scores.tokens(rows[row : row + 1], np.array([len(ids)]), name)
            assert np.isnan(got[0])
            np.testing.assert_allclose(got[1:], values.numpy(), rtol=1e-5, atol=1e-5)
        trained = ScoresReader(world / "scores").tokens(rows[row : row + 1], np.array([len(ids)]), "logp")
        assert not np.isnan(trained[found.weights != 0]).any()
    with pytest.raises(ArtifactError, match="has no entropy; score again with --entropy"):
        ScoresReader(world / "scores").tokens(rows[:1], np.array([9]), "entropy")


def test_scoring_that_was_stopped_goes_on_with_the_parts_it_has(world, monkeypatch):
    monkeypatch.setattr(score_stage, "PART_ROWS", 10)
    given = {"rows": [str(world / "packed")], "model": [str(world / "base")]}
    made, write = [], score_stage._write_part

    def stop_after_two(path, batch):
        if len(made) == 2:
            raise StageError("killed", 1)
        made.append(path.name)
        write(path, batch)

    monkeypatch.setattr(score_stage, "_write_part", stop_after_two)
    with pytest.raises(StageError, match="killed"):
        run_stage(SCORE, Score(), given, world / "again", Options())
    monkeypatch.setattr(score_stage, "_write_part", lambda path, batch: (made.append(path.name), write(path, batch)))
    run_stage(SCORE, Score(), given, world / "again", Options())
    assert made == ["part-000000.arrow", "part-000001.arrow", "part-000002.arrow"]
    assert not (world / "again.checkpoints").exists()
    reader, rows = PackedReader(world / "packed"), np.arange(24)
    lengths = reader.columns(rows, ["length"])["length"]
    ours, whole = (ScoresReader(world / n).tokens(rows, lengths, "logp") for n in ("again", "scores"))
    np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-6)


def test_dpo_starts_at_the_coins_loss_and_learns_the_pairs(world):
    cfg = make(Train, objective="dpo", bins_per_step=4, epochs=6, lr=1e-2)
    train(world, "dpo", cfg, scores=[f"ref={world / 'scores'}"])
    found = lines(world / "dpo")
    assert found[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert found[0]["reward_chosen"] == pytest.approx(0, abs=1e-4)
    assert found[-1]["loss"] < 0.6
    assert found[-1]["reward_accuracy"] > 0.8


@pytest.mark.parametrize("objective", ["cpo", "simpo", "orpo"])
def test_pairs_without_a_reference(world, objective):
    train(world, objective, make(Train, objective=objective, bins_per_step=4, epochs=4, lr=1e-2))
    found = lines(world / objective)
    assert found[-1]["loss"] < found[0]["loss"]
    assert found[-1]["reward_accuracy"] >= found[0]["reward_accuracy"]


def test_what_does_not_fit_is_refused_before_torch_loads(world):
    cfg = make(Train, objective="dpo", bins_per_step=4)
    with pytest.raises(ConfigError, match=r"the model it calls ref; make them with `postmill score`") as caught:
        train(world, "no", cfg)
    assert caught.value.code == 2
    with pytest.raises(ArtifactError, match="of other tokens than the row there") as caught:
        train(world, "no", cfg, packed="others", scores=[f"ref={world / 'scores'}"])
    assert caught.value.code == 78
    with pytest.raises(ArtifactError, match="8 of 8 rows are not one half of a pair, like row") as caught:
        train(world, "no", make(Train, objective="orpo", bins_per_step=2), packed="single")
    assert caught.value.code == 65
    with pytest.raises(ConfigError, match="expected NAME=PATH"):
        train(world, "no", cfg, scores=[str(world / "scores")])


OBJECTIVES = [
    Dpo(ld_alpha=0.5, loss="sigmoid:0.7,sft:0.3"),
    Dpo(loss="aot"),
    Dpo(weighting=True),
    Cpo(),
    Orpo(),
    Simpo(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{type(o).__name__}-{o.needs.coupling}")
def test_the_gradient_does_not_depend_on_micro_batches_or_packing(world, objective):
    """Nor does validation: it is the same loss, over all bins as one step."""
    scores = {"ref": ScoresReader(world / "scores")}
    accelerator = Accelerator(cpu=True)
    kernel = attention.choose("rows", torch.device("cpu"), torch.float32)
    seen = []
    for name, micro_bins in (("packed", 1), ("packed", 2), ("packed", 4), ("packed-alone", 1)):
        reader = PackedReader(world / name)
        source = BatchSource(reader, objective.needs, scores)
        cfg = make(Train, objective=objective, bins_per_step=-(-len(reader) // 4) * 4, micro_bins=micro_bins)
        net = hf.load_model(world / "base", "float32", attention=kernel)
        torch.manual_seed(3)
        for parameter in net.parameters():  # away from the reference
            parameter.data += 0.02 * torch.randn_like(parameter)
        forward = Forward(net, compute_dtype=torch.float32, backend="reference").train()
        step, layout = Steps(cfg, reader, 1)[0], Replicated(accelerator)
        loss = objective.build()
        got = accumulate(cfg, forward, loss, source, step, layout=layout)
        gradients = torch.cat([p.grad.flatten() for p in net.parameters()])
        seen.append((got.loss, gradients, got.metrics))
        valid = validate(cfg, forward, loss, source, layout)["loss"]
        assert valid == pytest.approx(float(got.loss), rel=1e-5)
    for loss, gradients, metrics in seen[1:]:
        against(tag(objective), laws.CUTS, (loss, gradients), seen[0][:2])
        torch.testing.assert_close(loss, seen[0][0], rtol=1e-6, atol=1e-7)
        assert float((gradients - seen[0][1]).abs().max()) <= 2e-6 * float(seen[0][1].abs().max())
        for name, value in metrics.items():
            torch.testing.assert_close(value, seen[0][2][name], rtol=1e-5, atol=1e-6)


class CentredLoss:
    """Log-probs of rows pulled to their mean over the step: it needs a number of the whole step first."""

    needs = Needs(stats=frozenset({"logp"}), coupling="step_constants", measures=("rows",))

    def ask(self, batch, norms):
        return Ask(self.needs.stats)

    def summary(self, outputs, batch):
        return row_sum(outputs.logp_T, batch)[:, None]

    def constants(self, summary_RS, norms, past=()):
        assert not summary_RS.requires_grad
        assert len(summary_RS) == norms["rows"]
        return {"mean": float(summary_RS.mean())}

    def loss(self, outputs, batch, norms, constants):
        away_R = self.summary(outputs, batch)[:, 0] - constants["mean"]
        total = torch.where(batch.row_R >= 0, away_R.square(), 0).sum() / norms["rows"]
        return Loss(total, {"away": total.detach()}, {})


def test_constants_of_a_step_are_those_of_all_its_rows_whatever_the_micro_batches(world):
    reader, accelerator = PackedReader(world / "packed"), Accelerator(cpu=True)
    loss, seen = CentredLoss(), []
    source = BatchSource(reader, loss.needs)
    for micro_bins in (1, 2, 4):
        cfg = make(Train, bins_per_step=-(-len(reader) // 4) * 4, micro_bins=micro_bins, normalize="rows")
        kernel = attention.choose("rows", torch.device("cpu"), torch.float32)
        net = hf.load_model(world / "base", "float32", attention=kernel)
        forward = Forward(net, compute_dtype=torch.float32, backend="reference").train()
        step, layout = Steps(cfg, reader, 1)[0], Replicated(accelerator)
        got = accumulate(cfg, forward, loss, source, step, layout=layout)
        seen.append((got.loss, torch.cat([p.grad.flatten() for p in net.parameters()])))
    for total, gradients in seen[1:]:
        torch.testing.assert_close(total, seen[0][0], rtol=1e-6, atol=0)
        assert float((gradients - seen[0][1]).abs().max()) <= 2e-6 * float(seen[0][1].abs().max())
    rows = np.arange(reader.num_rows)
    lengths = reader.columns(rows, ["length"])["length"]
    logp = ScoresReader(world / "scores").tokens(rows, lengths, "logp")
    sums = np.array([np.nansum(piece, dtype=np.float64) for piece in np.split(logp, np.cumsum(lengths)[:-1])])
    assert float(seen[0][0]) == pytest.approx(np.square(sums - sums.mean()).mean(), rel=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "aot"])
def test_two_ranks_learn_pairs_as_one_does(world, loss):
    """`sigmoid` looks at a pair, `aot` at all pairs of the step: its first pass gathers them from both ranks."""
    cfg = make(Train, objective=Dpo(loss=loss), tuner="full", bins_per_step=4, steps=3, lr=1e-2)
    ports = {
        "packed": [str(world / "packed")],
        "model": [str(world / "base")],
        "scores": [f"ref={world / 'scores'}", f"valid.ref={world / 'scores'}"],
        "valid": [str(world / "packed")],
    }
    run_stage(STAGE, cfg, ports, world / f"{loss}-one", Options(threads=1))
    pids = fork_ranks([cfg] * 2, ports, world / f"{loss}-two")
    assert [wait_code(pid) for pid in pids] == [0, 0]
    one, two = (lines(world / f"{loss}-{ranks}") for ranks in ("one", "two"))
    against("dpo", laws.RANKS, *((run[0]["loss"], run[0]["grad_norm"]) for run in (two, one)))
    for x, y in zip(one, two, strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)
        assert y["reward_chosen"] == pytest.approx(x["reward_chosen"], rel=1e-4, abs=1e-5)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-4)
    assert two[-1]["valid_loss"] == pytest.approx(one[-1]["valid_loss"], rel=1e-5)
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-6)
