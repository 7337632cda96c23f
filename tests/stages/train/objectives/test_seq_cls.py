"""Classifiers and regressors of rows: losses and gradients are transformers' own, on decoders and on an encoder."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
import token_tables  # noqa: E402
from agreement import against  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.seq_cls_options import SeqCls  # noqa: E402

from . import laws  # noqa: E402

SINGLE = SeqCls(labels=3)
MULTI = SeqCls(problem="multi_label", labels=4)
REGRESSION = SeqCls(problem="regression", labels=1)
SEVERAL = SeqCls(problem="regression", labels=2)
NAMES = {"single": SINGLE, "multi": MULTI, "regression": REGRESSION, "several": SEVERAL}


def labels(rng, name):
    return {
        "single": {"label": float(rng.integers(3))},
        "multi": {"extra": json.dumps({"label": rng.permutation(4)[: rng.integers(0, 4)].tolist()})},
        "regression": {"label": float(rng.normal())},
        "several": {"extra": json.dumps({"label": rng.normal(size=2).tolist()})},
    }[name]


def rows(name, count=13):
    rng = np.random.default_rng(2)
    found = []
    for row in tiny_model.make_rows(count, longest=18):
        ids = row["input_ids"]
        found.append(token_tables.row(ids, [(1, len(ids), 1.0)], **labels(rng, name)))
    return found


def write_encoder(folder, kind="bert"):
    torch.manual_seed(0)
    sizes = {"vocab_size": tiny_model.VOCAB, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.2}
    if kind == "modernbert":
        more = {"global_attn_every_n_layers": 2, "local_attention": 8, "classifier_pooling": "mean", "cls_token_id": 1}
        config = transformers.ModernBertConfig(**sizes, **more, sep_token_id=2, bos_token_id=1, eos_token_id=2)
        transformers.ModernBertModel(config).save_pretrained(folder)
    else:
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        name = {"bert": "Bert", "roberta": "Roberta"}[kind]
        config = getattr(transformers, f"{name}Config")(**sizes, **off)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": []}))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("seq_cls")
    base = tiny_model.write_model(folder / "base")
    for name in NAMES:
        laws.write_twice(folder, name, base, rows(name))
    for kind in ("bert", "roberta", "modernbert"):
        encoder = write_encoder(folder / kind, kind)
        laws.write_twice(folder, f"{kind}-single", encoder, rows("single"))
    return folder


def train(world, target, objective, packed, base="base", **options):
    ports = {"packed": [str(world / packed)], "model": [str(world / base)]}
    run_stage(STAGE, make(Train, objective=objective, **options), ports, target, Options(threads=1))
    return laws.lines(target)


@pytest.mark.parametrize("name", list(NAMES))
def test_the_first_loss_and_norm_are_transformers_own(world, tmp_path, name):
    """From the same weights (those of the trained model at a rate of nearly 0) and rows, one to a batch."""
    packed = world / name
    count = len(PackedReader(packed))
    found = train(world, tmp_path / "run", NAMES[name], name, tuner="full", steps=1, bins_per_step=count, lr=1e-12)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    reader = PackedReader(packed)
    total = torch.zeros(())
    for row in range(reader.num_rows):
        ids = torch.from_numpy(reader.token_rows.lay(np.array([row])).input_ids.astype(np.int64))
        [record] = reader.records(np.array([row]))
        label = record["label"] if record["label"] is not None else json.loads(record["extra"])["label"]
        if name == "multi":
            target = torch.zeros(1, 4)
            target[0, label] = 1
        else:
            target = torch.tensor([label], dtype=torch.long if name == "single" else torch.float)
        total = total + model(input_ids=ids[None], labels=target).loss / reader.num_rows
    assert found[0]["loss"] == pytest.approx(float(total.detach()), rel=1e-5)
    total.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    mine = (found[0]["loss"], found[0]["grad_norm"])
    against("seq_cls", "transformers' own loss of a whole model (float32; norm of the gradient)", mine, (total, norm))
    assert found[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("name", list(NAMES))
def test_cuts_do_not_matter(world, name):
    laws.cuts_do_not_matter(NAMES[name], (world / name, world / f"{name}-alone"), world / "base")


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_encoders_learn_and_are_read_by_transformers_and_score(world, tmp_path, kind):
    packed = (world / f"{kind}-single", world / f"{kind}-single-alone")
    laws.cuts_do_not_matter(SINGLE, packed, world / kind)
    found = train(
        world, tmp_path / "run", SINGLE, packed[0].name, kind, tuner="full", lr=1e-2, epochs=12, bins_per_step=2
    )
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    assert model.config.problem_type == "single_label_classification"
    given = {"rows": [str(packed[0])], "model": [str(tmp_path / "run")]}
    run_stage(SCORE, Score(), given, tmp_path / "scores", Options())
    reader = PackedReader(packed[0])
    values = ScoresReader(tmp_path / "scores").values(np.arange(reader.num_rows))
    for row in range(reader.num_rows):
        ids = torch.from_numpy(reader.token_rows.lay(np.array([row])).input_ids.astype(np.int64))
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(values[row]), model(ids[None]).logits[0], rtol=1e-4, atol=1e-5)


def test_stops_and_ranks_do_not_matter(world, tmp_path):
    ports = {"packed": [str(world / "single")], "model": [str(world / "base")]}
    laws.two_ranks_learn_as_one(SINGLE, ports, tmp_path)
    laws.resumes_to_the_same_bytes(SINGLE, ports, tmp_path)


def test_weights_smoothing_and_huber_are_torchs():
    values = torch.randn(6, 3, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 2, 0, 1])
    batch = type("Rows", (), {"row_R": torch.arange(6), "columns": {"label": target.float()}})
    outputs = type("Outputs", (), {"values_NC": values})
    options = SeqCls(labels=3, label_smoothing=0.1, class_weights=[1.0, 5.0, 0.5])
    got = options.build().loss(outputs, batch, {"rows": 6.0}, {})
    each = F.cross_entropy(values, target, reduction="none", label_smoothing=0.1)
    assert float(got.total) == pytest.approx(float((each * torch.tensor([1.0, 5.0, 0.5])[target]).mean()), rel=1e-12)
    numbers = torch.randn(6, 3, dtype=torch.float64)
    batch = type("Rows", (), {"row_R": torch.arange(6), "columns": {"label_list": numbers}})
    got = SeqCls(problem="regression", labels=3, huber=0.5).build().loss(outputs, batch, {"rows": 6.0}, {})
    assert float(got.total) == pytest.approx(float(F.huber_loss(values, numbers, delta=0.5)), rel=1e-12)
    assert float(got.metrics["absolute_error"][0]) / 6 == pytest.approx(float((values - numbers).abs().mean()))


def test_labels_that_do_not_fit_are_refused(world, tmp_path):
    cases = {
        "single": (SeqCls(labels=2), "label 2, expected a class from 0 to 1"),
        "regression": (SINGLE, "expected a class from 0 to 2"),
        "several": (REGRESSION, "expected a number"),
        "multi": (SeqCls(problem="multi_label", labels=2), "expected a list of classes from 0 to 1"),
    }
    for name, (options, message) in cases.items():
        with pytest.raises(ArtifactError, match=message) as caught:
            train(world, tmp_path / "no", options, name, bins_per_step=2)
        assert caught.value.code == 65
    with pytest.raises((ConfigError, ValueError), match="2 weights for 3 classes"):
        SeqCls(labels=3, class_weights=[1.0, 2.0])
