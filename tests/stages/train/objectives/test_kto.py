"""Single answers, good or bad: the losses against TRL's and the paper's, partners, and laws of a step."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from agreement import against  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.partners import Partners  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared import hf  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.kto_options import Kto  # noqa: E402

from . import laws  # noqa: E402
from .rows import random_rows  # noqa: E402

LABELS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0]


def labelled(seed=0):
    rows = random_rows(seed=seed)
    columns = rows.batch.columns | {"label": torch.tensor(LABELS)}
    return rows._replace(batch=rows.batch._replace(columns=columns))


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("kl_shift", [0.4, -0.4])
def test_the_loss_is_trls(loss, kl_shift):
    KTOTrainer = pytest.importorskip("trl", reason="the oracle").KTOTrainer
    options = Kto(loss=loss, beta=0.3, desirable=1.2, undesirable=0.7)
    rows, mismatched = labelled(), random_rows(seed=1)
    kl_batch = mismatched.batch._replace(
        columns={"kl_logp": torch.where(mismatched.batch.mask_T, mismatched.outputs.logp_T.detach() - kl_shift, 0)}
    )
    objective = options.build()
    constants = objective.constants(objective.summary(mismatched.outputs, kl_batch).detach(), {})
    ours = objective.loss(rows.outputs, rows.batch, {"labelled": 10.0}, constants if loss == "kto" else {})
    [ours_grad] = torch.autograd.grad(ours.total, rows.leaf, retain_graph=True)

    order = [*rows._rows(0), *rows._rows(1)]
    mask = rows.padded(rows.batch.mask_T.double()) != 0
    sums = [rows.padded(v).sum(1) for v in (rows.outputs.logp_T, rows.batch.columns["ref_logp"])]
    kl_sums = [mismatched.padded(v).sum(1) for v in (mismatched.outputs.logp_T.detach(), kl_batch.columns["kl_logp"])]
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, unwrap_model=lambda m: m),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=loss == "kto",
        loss_type=loss,
        beta=0.3,
        desirable_weight=1.2,
        undesirable_weight=0.7,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        _compute_kl_logps=lambda model, batch: kl_sums[0] if loss == "kto" else None,
    )
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    outputs = SimpleNamespace(
        log_probs=rows.padded(rows.outputs.logp_T) * mask, entropy=zeros, mean_logits=zeros, aux_loss=None
    )
    first = torch.ones(10, 1, dtype=torch.long)
    inputs = {
        "input_ids": torch.ones(10, mask.shape[1] + 1, dtype=torch.long),
        "attention_mask": torch.ones(10, mask.shape[1] + 1),
        "completion_mask": torch.cat([first * 0, mask.long()], 1),
        "label": torch.tensor(LABELS)[order] > 0.5,
        "ref_logps": sums[1],
        "ref_KL_logps": kl_sums[1],
    }
    theirs = KTOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)
    [their_grad] = torch.autograd.grad(theirs, rows.leaf)
    against("kto", "TRL's KTOTrainer", (ours.total, ours_grad), (theirs, their_grad))
    assert float(ours.total.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    torch.testing.assert_close(ours_grad, their_grad, rtol=1e-10, atol=1e-14)
    if loss == "kto":
        assert constants["z"] == pytest.approx(stub._metrics["train"]["kl"][0], rel=1e-12)
        assert (constants["z"] > 0) == (kl_shift > 0)


def test_bco_is_the_papers_classifier_around_the_mean_reward():
    options = Kto(loss="bco", beta=0.3, desirable=2.0)
    rows, objective = labelled(), options.build()
    summary = objective.summary(rows.outputs, rows.batch).detach()
    constants = objective.constants(summary, {})
    ours = objective.loss(rows.outputs, rows.batch, {"labelled": 10.0}, constants)
    reward = 0.3 * summary[:, 0].numpy()
    sigmoid = 1 / (1 + np.exp(-(reward - reward.mean())))
    good = np.array(LABELS) > 0.5
    expected = (-2.0 * np.log(sigmoid[good]).sum() - np.log(1 - sigmoid[~good]).sum()) / 10
    assert float(ours.total.detach()) == pytest.approx(expected, rel=1e-12)


def test_the_mean_reward_of_bco_is_that_of_all_rows_so_far():
    objective, alone = Kto(loss="bco", beta=0.3).build(), Kto(loss="bco", beta=0.3, mean="step").build()
    past, seen = [], []
    for step in range(4):
        ratio_R = torch.randn(5 + step, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        labelled_R = (torch.arange(5 + step) != 2).double()
        summary = torch.stack([ratio_R, labelled_R], 1)
        seen.append(0.3 * ratio_R[labelled_R > 0])
        z = objective.constants(summary, {}, past)["z"]
        assert z == pytest.approx(float(torch.cat(seen).mean()), rel=1e-12)
        assert alone.constants(summary, {}, past)["z"] == pytest.approx(float(seen[-1].mean()), rel=1e-12)
        past.append({"z": z, "normaliser": float(len(seen[-1]))})


def answers(num_rows, seed=0):
    rows = tiny_model.make_rows(num_rows, seed=seed, longest=18)
    for number, row in enumerate(rows):
        row |= {"label": float(number % 3 > 0), "weight_sum": float(row["trained_tokens"])}
        for span in row["spans"]:
            span["weight"] = 1.0
    rows[5]["label"] = None
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("kto")
    base = tiny_model.write_model(folder / "base")
    laws.write_twice(folder, "packed", base, answers(21))
    tiny_model.write_packed(folder / "unlabelled", base, tiny_model.make_rows(8))
    for name, partners in {"ref": False, "kl": True}.items():
        given = {"rows": [str(folder / "packed")], "model": [str(base)]}
        run_stage(SCORE, Score(partners=partners), given, folder / name, Options())
    return folder


def test_partners_are_prompts_with_answers_of_others_and_are_scored_as_such(world):
    reader, scores = PackedReader(world / "packed"), ScoresReader(world / "kl")
    partners, model = Partners(reader.token_rows), hf.load_model(world / "base", "float32")
    real = np.flatnonzero(partners.of_row >= 0)
    assert len(real) == 20
    assert sorted(partners.of_row[real]) == real.tolist()
    assert (partners.of_row[real] != real).all()
    for row in real.tolist():
        laid = partners.lay(np.array([row]))
        own, other = (reader.token_rows.lay(np.array([r])) for r in (row, partners.of_row[row]))
        first, start = np.flatnonzero(own.weights)[0], np.flatnonzero(other.weights)[0]
        expected = [*own.input_ids[:first], *other.input_ids[start:]]
        assert laid.input_ids.tolist() == expected[: len(laid.input_ids)]
        assert len(laid.input_ids) >= min(len(expected), 17)
        ids = torch.from_numpy(laid.input_ids.astype(np.int64))
        with torch.no_grad():
            logp_TV = model(ids[None]).logits[0, :-1].log_softmax(-1)
        want = logp_TV.gather(1, ids[1:, None])[first - 1 :, 0]
        got = scores.tokens(np.array([row]), np.array([len(ids)]), "logp")[first:]
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["kto", "bco", "apo_zero_unpaired"])
def test_cuts_do_not_matter(world, loss):
    scores = {"ref": world / "ref"} | ({"kl": world / "kl"} if loss == "kto" else {})
    packed = (world / "packed", world / "packed-alone")
    laws.cuts_do_not_matter(Kto(loss=loss, undesirable=1.5), packed, world / "base", scores)


def test_ranks_and_stops_do_not_matter_and_the_first_loss_is_a_half(world, tmp_path):
    ports = {
        "packed": [str(world / "packed")],
        "model": [str(world / "base")],
        "scores": [f"ref={world / 'ref'}", f"kl={world / 'kl'}"],
    }
    laws.two_ranks_learn_as_one(Kto(), ports, tmp_path)
    laws.resumes_to_the_same_bytes(Kto(), ports, tmp_path)
    ports["scores"] = [f"ref={world / 'ref'}"]
    laws.resumes_to_the_same_bytes(Kto(loss="bco"), ports, tmp_path / "bco")
    found = laws.lines(tmp_path / "one")
    assert found[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert found[0]["z"] == pytest.approx(0, abs=1e-4)


def test_learns_to_tell_good_from_bad(world, tmp_path):
    ports = {"packed": [str(world / "packed")], "model": [str(world / "base")], "scores": [f"ref={world / 'ref'}"]}
    for loss in ("bco", "apo_zero_unpaired"):
        cfg = make(Train, objective=Kto(loss=loss), bins_per_step=4, epochs=8, lr=2e-2)
        run_stage(STAGE, cfg, ports, tmp_path / loss, Options())
        found = laws.lines(tmp_path / loss)
        assert found[-1]["loss"] < found[0]["loss"]
        assert found[-1]["reward_accuracy"] > 0.8


def test_what_is_missing_is_said(world, tmp_path):
    ports = {"packed": [str(world / "packed")], "model": [str(world / "base")], "scores": [f"ref={world / 'ref'}"]}
    with pytest.raises(ConfigError, match="make them with `postmill score --partners` and pass --scores kl=DIR"):
        run_stage(STAGE, make(Train, objective="kto", bins_per_step=4), ports, tmp_path / "no", Options())
    given = {"rows": [str(world / "unlabelled")], "model": [str(world / "base")]}
    with pytest.raises(ArtifactError, match="no row has a label"):
        run_stage(SCORE, Score(partners=True), given, tmp_path / "no", Options())
