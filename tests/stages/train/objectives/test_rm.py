"""Reward models: the loss against TRL's, laws of a step, files that transformers, peft and `score` read."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from agreement import against  # noqa: E402

from postmill.io.errors import ArtifactError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared.asked import Outputs  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.rm_options import Rm  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402

from . import laws  # noqa: E402
from .rows import random_rows  # noqa: E402
from .test_pairs_run import pairs  # noqa: E402

PAD = 9
"""A token that rows may end in: transformers' classifiers read the one before it."""


@pytest.mark.parametrize("options", [Rm(), Rm(centring=0.1), Rm(margin=True, centring=0.01)])
def test_the_loss_is_trls(options):
    RewardTrainer = pytest.importorskip("trl", reason="the oracle").RewardTrainer
    rows = random_rows()
    values_R = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    ours = options.build().loss(Outputs(values_NC=values_R[:, None]), rows.batch, {"groups": 5.0}, {})
    [ours_grad] = torch.autograd.grad(ours.total, values_R)
    order = [*rows._rows(0), *rows._rows(1)]
    one = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=options.centring or None),
        accelerator=one,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"attention_mask": torch.ones(10, 3)}
    if options.margin:
        inputs["margin"] = rows.batch.columns["margin"][rows._rows(0)].double()
    theirs = RewardTrainer.compute_loss(stub, lambda **_: SimpleNamespace(logits=values_R[order][:, None]), inputs)
    [their_grad] = torch.autograd.grad(theirs, values_R)
    against("rm", "TRL's RewardTrainer", (ours.total, ours_grad), (theirs, their_grad))
    assert float(ours.total) == pytest.approx(float(theirs), rel=1e-12)
    torch.testing.assert_close(ours_grad, their_grad, rtol=1e-12, atol=1e-14)
    assert float(ours.metrics["reward_accuracy"][0]) / 5 == pytest.approx(stub._metrics["train"]["accuracy"][0])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rm")
    base = tiny_model.write_model(folder / "base", pad_token_id=PAD)
    rows = pairs(12)
    for row in rows[::3]:
        row["input_ids"][-1] = PAD
    laws.write_twice(folder, "packed", base, rows)
    tiny_model.write_packed(folder / "single", base, tiny_model.make_rows(8))
    return folder


def ports(world, **given):
    return {"packed": [str(world / "packed")], "model": [str(world / "base")]} | given


def test_cuts_do_not_matter(world):
    packed = (world / "packed", world / "packed-alone")
    laws.cuts_do_not_matter(Rm(margin=True, centring=0.01), packed, world / "base")


def test_ranks_and_stops_do_not_matter(world, tmp_path):
    laws.two_ranks_learn_as_one(Rm(), ports(world), tmp_path)
    laws.resumes_to_the_same_bytes(Rm(), ports(world), tmp_path, tuner=Lora(rank=4, dropout=0.1))


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_learns_pairs_and_is_read_by_transformers_peft_and_score(world, tmp_path, tuner):
    tuner_options = {"tuner": Lora(rank=4)} if tuner == "lora" else {"tuner": "full"}
    cfg = make(Train, objective="rm", bins_per_step=4, epochs=6, lr=1e-2, **tuner_options)
    run_stage(STAGE, cfg, ports(world), tmp_path / "run", Options())
    found = laws.lines(tmp_path / "run")
    assert found[-1]["loss"] < 0.3 < found[0]["loss"]
    assert found[-1]["reward_accuracy"] > 0.8

    kind = transformers.AutoModelForSequenceClassification
    if tuner == "full":
        net = kind.from_pretrained(tmp_path / "run")
        rows_model, adapter = tmp_path / "run", {}
    else:
        from peft import PeftModel

        base = kind.from_pretrained(world / "base", num_labels=1)
        net = PeftModel.from_pretrained(base, tmp_path / "run")
        rows_model, adapter = world / "base", {"adapter": [str(tmp_path / "run")]}
    given = {"rows": [str(world / "packed")], "model": [str(rows_model)]} | adapter
    run_stage(SCORE, Score(), given, tmp_path / "scores", Options())
    reader, scores = PackedReader(world / "packed"), ScoresReader(tmp_path / "scores")
    scores.check(reader)
    values = scores.values(np.arange(24))
    ids = [reader.token_rows.lay(np.array([row])).input_ids.astype(np.int64) for row in range(24)]
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(i) for i in ids], True, PAD)
    lengths = torch.tensor([len(i) for i in ids])
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        theirs = net.eval()(input_ids=padded, attention_mask=mask).logits
    np.testing.assert_allclose(values, theirs.numpy(), rtol=1e-4, atol=1e-5)
    assert (values[0::2] > values[1::2]).mean() > 0.8


def test_what_does_not_fit_is_refused(world, tmp_path):
    with pytest.raises(ArtifactError, match="are not one half of a pair"):
        single = ports(world, packed=[str(world / "single")])
        run_stage(STAGE, make(Train, objective="rm", bins_per_step=2), single, tmp_path / "no", Options())
    given = {"rows": [str(world / "packed")], "model": [str(world / "base")]}
    with pytest.raises(ArtifactError, match="has no classifier; train one"):
        run_stage(SCORE, Score(head="sequence"), given, tmp_path / "no", Options())
    run_stage(SCORE, Score(), given, tmp_path / "logp", Options())
    with pytest.raises(ArtifactError, match="scores of tokens; score with a reward model"):
        ScoresReader(tmp_path / "logp").values(np.arange(2))
