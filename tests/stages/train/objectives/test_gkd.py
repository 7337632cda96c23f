"""Distillation from stored likeliest tokens: against TRL on whole distributions, float64 formulas, laws of a step."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from agreement import against  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared import hf  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.gkd import diverge  # noqa: E402
from postmill.stages.train.objectives.gkd_options import Asft, Gkd  # noqa: E402

from . import laws  # noqa: E402

TOP, TEMPERATURE = 5, 2.0


def logits(seed, vocab=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, vocab, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("divergence", "beta"), [("forward", 0.0), ("js", 0.3), ("js", 0.7), ("reverse", 1.0)])
def test_of_the_whole_vocabulary_it_is_trls(divergence, beta):
    """All but the least likely token, which is the bucket: then nothing is left out."""
    GKDTrainer = pytest.importorskip("trl.experimental.gkd", reason="the oracle").GKDTrainer
    teacher, student = logits(0), logits(1).requires_grad_()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="sum")
    t_NK, ids = teacher.log_softmax(-1).topk(8)
    ours = diverge(t_NK, student.log_softmax(-1).gather(1, ids), "bucket", divergence, beta).sum()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-7)
    mine, other = (torch.autograd.grad(value, student)[0] for value in (ours, theirs))
    against("gkd", "TRL's GKDTrainer, whole vocabulary", (ours, mine), (theirs, other))
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "none"])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "js", "skew_forward", "skew_reverse"])
def test_of_the_likeliest_it_is_the_formula(tail, divergence):
    teacher, student = logits(2).softmax(-1), logits(3).softmax(-1)
    t, ids = teacher.topk(4)
    s = student.gather(1, ids)
    ours = diverge(t.log(), s.log(), tail, divergence, 0.2)
    if tail == "bucket":
        t, s = (torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1) for p in (t, s))
    elif tail == "renormalise":
        t, s = (p / p.sum(-1, keepdim=True) for p in (t, s))
    middle = 0.2 * t + 0.8 * s
    expected = {
        "forward": kl(t, s),
        "reverse": kl(s, t),
        "js": 0.2 * kl(t, middle) + 0.8 * kl(s, middle),
        "skew_forward": kl(t, middle),
        "skew_reverse": kl(s, 0.2 * s + 0.8 * t),
    }
    against("gkd", "formulas of the divergences, likeliest tokens", (ours,), (expected[divergence],))
    torch.testing.assert_close(ours, expected[divergence], rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("gkd")
    base = tiny_model.write_model(folder / "base")
    tiny_model.write_model(folder / "teacher", seed=5)
    laws.write_twice(folder, "packed", base, tiny_model.make_rows(14, seed=3))
    rows = {"rows": [str(folder / "packed")]}
    for name, model, options in (
        ("warm", "teacher", {"top_k": TOP, "temperature": TEMPERATURE}),
        ("plain", "teacher", {"top_k": TOP}),
        ("ref", "base", {"top_k": TOP}),
        ("without", "teacher", {}),
    ):
        run_stage(SCORE, Score(**options), rows | {"model": [str(folder / model)]}, folder / name, Options())
    return folder


def test_the_likeliest_are_those_of_the_models_own_softmax(world):
    model = hf.load_model(world / "teacher", "float32")
    reader, scores = PackedReader(world / "packed"), ScoresReader(world / "warm")
    for row in range(reader.num_rows):
        laid = reader.token_rows.lay(np.array([row]))
        ids = torch.from_numpy(laid.input_ids.astype(np.int64))
        with torch.no_grad():
            logp_TV = (model(ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        lengths = np.array([len(ids)])
        top_ids, top_logp = (scores.top(np.array([row]), lengths, name) for name in ("top_ids", "top_logp"))
        at = np.flatnonzero(laid.weights)
        want = logp_TV[at - 1].topk(TOP)
        np.testing.assert_allclose(top_logp[at], want.values.numpy(), rtol=1e-5, atol=1e-5)
        assert (top_ids[at] == want.indices.numpy()).all()
        assert np.isnan(top_logp[0]).all()


def test_one_step_is_that_of_a_teacher_beside_the_student(world):
    """Loss and gradient against both models' whole logits in float64."""
    options = Gkd(divergence="js", beta=0.3, temperature=TEMPERATURE, nll=0.5)
    loss, gradients, _ = laws.whole_step(options, world / "packed", world / "base", {"teacher": world / "warm"}, 1)
    student, teacher = (hf.load_model(world / name, "float32") for name in ("base", "teacher"))
    torch.manual_seed(3)
    for parameter in student.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    student, teacher = student.double(), teacher.double()
    reader, total = PackedReader(world / "packed"), torch.zeros((), dtype=torch.float64)
    for row in range(reader.num_rows):
        laid = reader.token_rows.lay(np.array([row]))
        ids = torch.from_numpy(laid.input_ids.astype(np.int64))
        weights = torch.from_numpy(laid.weights[1:]).double()
        raw = student(ids[None]).logits[0, :-1]
        s = (raw / TEMPERATURE).log_softmax(-1)
        with torch.no_grad():
            t = (teacher(ids[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
        t, top = t.topk(TOP)
        t, s = t.exp(), s.gather(1, top).exp()
        t, s = (torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1) for p in (t, s))
        middle = 0.3 * t + 0.7 * s
        value = 0.3 * kl(t, middle) + 0.7 * kl(s, middle)
        nll = F.cross_entropy(raw / TEMPERATURE, ids[1:], reduction="none")
        total = total + (weights * (value + 0.5 * nll)).sum()
    tokens = float(reader.plan.trained_tokens.sum())
    assert loss == pytest.approx(float((total / tokens).detach()), rel=1e-5)
    (total / tokens).backward()
    expected = torch.cat([p.grad.flatten() for p in student.parameters()])
    assert float((gradients - expected).abs().max()) < 1e-4 * float(expected.abs().max())


CASES = {
    "forward": (Gkd(temperature=TEMPERATURE), {"teacher": "warm"}),
    "reverse": (Gkd(divergence="reverse", nll=0.1), {"teacher": "plain"}),
    "asft": (Asft(alpha=0.5), {"ref": "ref"}),
}


@pytest.mark.parametrize("name", list(CASES))
def test_cuts_do_not_matter(world, name):
    options, scores = CASES[name]
    packed = (world / "packed", world / "packed-alone")
    laws.cuts_do_not_matter(options, packed, world / "base", {role: world / path for role, path in scores.items()})


def test_the_student_comes_to_the_teacher(world, tmp_path):
    ports = {
        "packed": [str(world / "packed")],
        "model": [str(world / "base")],
        "scores": [f"teacher={world / 'plain'}"],
    }
    cfg = make(Train, objective=Gkd(), tuner="full", bins_per_step=4, epochs=10, lr=1e-2)
    run_stage(STAGE, cfg, ports, tmp_path / "run", Options(threads=1))
    found = laws.lines(tmp_path / "run")
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert 0 < found[0]["teacher_mass"] < 1
    laws.resumes_to_the_same_bytes(Gkd(), ports, tmp_path)


def test_asft_starts_as_dft(world, tmp_path):
    ports = {"packed": [str(world / "packed")], "model": [str(world / "base")], "scores": [f"ref={world / 'ref'}"]}
    run_stage(STAGE, make(Train, objective=Asft(), bins_per_step=4, steps=1), ports, tmp_path / "run", Options())
    run_stage(STAGE, make(Train, objective="dft", bins_per_step=4, steps=1), ports, tmp_path / "dft", Options())
    first, plain = laws.lines(tmp_path / "run")[0], laws.lines(tmp_path / "dft")[0]
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert math.isfinite(first["grad_norm"])


def test_what_is_missing_or_of_another_temperature_is_said(world, tmp_path):
    ports = {"packed": [str(world / "packed")], "model": [str(world / "base")]}
    cfg = make(Train, objective="gkd", bins_per_step=4)
    with pytest.raises(ConfigError, match="make them with `postmill score --top-k 64` and pass --scores teacher=DIR"):
        run_stage(STAGE, cfg, ports, tmp_path / "no", Options())
    with pytest.raises(ConfigError, match="are of temperature 2, the objective's is 1"):
        run_stage(STAGE, cfg, ports | {"scores": [f"teacher={world / 'warm'}"]}, tmp_path / "no", Options())
    with pytest.raises(ArtifactError, match="score again with --top-k 64"):
        run_stage(STAGE, cfg, ports | {"scores": [f"teacher={world / 'without'}"]}, tmp_path / "no", Options())
