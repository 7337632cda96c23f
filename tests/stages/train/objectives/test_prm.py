"""Process reward models: the loss is transformers' own of token classes, steps come from marked parts of an answer."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_encoder  # noqa: E402
import tiny_model  # noqa: E402
import token_tables  # noqa: E402
from agreement import against  # noqa: E402

from postmill.io.errors import ArtifactError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.labels import step_labels  # noqa: E402
from postmill.stages.train.objectives.prm_options import Prm  # noqa: E402

from . import laws  # noqa: E402


def rows(count=10, seed=0):
    """Answers of one to three steps, which are right where their last token is even."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        ids, spans, labels = rng.integers(3, tiny_model.VOCAB, 4).tolist(), [], []
        for step in range(int(rng.integers(1, 4))):
            start = len(ids)
            ids += rng.integers(3, tiny_model.VOCAB, int(rng.integers(1, 5))).tolist()
            spans.append((start, len(ids), 1.0 + step % 2))
            labels.append(ids[-1] % 2 == 0)
        found.append(token_tables.row(ids, spans, extra=json.dumps({"label": labels})))
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("prm")
    base = tiny_model.write_model(folder / "base", classifier_dropout=0.0)
    laws.write_twice(folder, "packed", base, rows())
    tiny_model.write_packed(folder / "plain", base, tiny_model.make_rows(6))
    return folder


def ports(world, packed="packed"):
    return {"packed": [str(world / packed)], "model": [str(world / "base")]}


def test_the_first_loss_is_transformers_own(world, tmp_path):
    reader = PackedReader(world / "packed")
    cfg = make(Train, objective=Prm(), tuner="full", steps=1, bins_per_step=len(reader), lr=1e-12)
    run_stage(STAGE, cfg, ports(world), tmp_path / "run", Options(threads=1))
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "run").eval()
    total, count = 0.0, 0
    for record in reader.records(np.arange(reader.num_rows)):
        labels = torch.full((1, record["length"]), -100)
        for span, label in zip(record["spans"], json.loads(record["extra"])["label"], strict=True):
            labels[0, span["end"] - 1] = int(label)
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([record["input_ids"]]), labels=labels).loss
        total, count = total + float(mean) * len(record["spans"]), count + len(record["spans"])
    [line] = laws.lines(tmp_path / "run")
    assert line["normaliser"] == count
    against("prm", "transformers' own loss of a whole model (float32)", (line["loss"],), (total / count,))
    assert line["loss"] == pytest.approx(total / count, rel=1e-5)


def test_cuts_and_stops_do_not_matter_and_steps_are_learned(world, tmp_path):
    laws.cuts_do_not_matter(Prm(), (world / "packed", world / "packed-alone"), world / "base")
    laws.resumes_to_the_same_bytes(Prm(), ports(world), tmp_path)
    cfg = make(Train, objective=Prm(), tuner="full", bins_per_step=2, epochs=15, lr=1e-2)
    run_stage(STAGE, cfg, ports(world), tmp_path / "run", Options(threads=1))
    found = laws.lines(tmp_path / "run")
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert found[-1]["accuracy"] > 0.9


@pytest.mark.parametrize("steps", [["one."], ["one.\n", "two"], ["one.\n", "two, right", " wrong"]])
def test_marked_parts_of_an_answer_are_its_steps(tmp_path, steps):
    parts = [{"type": "text", "text": text, "loss_scale": 1 + n % 2} for n, text in enumerate(steps)]
    message = {"role": "assistant", "content": parts}
    right = [True, True, False][: len(steps)]
    row = {"messages": [{"role": "user", "content": "q"}, message], "label": right}
    [made], _, _ = tiny_encoder.run(tiny_encoder.encoder(), row)
    base = tiny_model.write_model(tmp_path / "base", vocab_size=300)
    token_rows = [token_tables.row(made["input_ids"], spans_of(made), turns=made["turns"], extra=made["extra"])]
    reader = PackedReader(tiny_model.write_packed(tmp_path / "packed", base, token_rows, row_tokens=256))
    labels = step_labels(reader, np.array([0]))
    assert labels[labels > 0].tolist() == [2, 2, 1][: len(steps)]
    assert reader.plan.num_rows.tolist() == [1]
    last = np.flatnonzero(labels)[-1]
    assert last == made["length"] - 2  # the token before the one that closes the turn


def spans_of(row):
    return [(span["start"], span["end"], span["weight"]) for span in row["spans"]]


def test_an_answer_without_labels_of_its_steps_is_refused(world, tmp_path):
    with pytest.raises(ArtifactError, match="label None for an answer of 2 steps, expected as many") as caught:
        run_stage(
            STAGE, make(Train, objective=Prm(), bins_per_step=1), ports(world, "plain"), tmp_path / "no", Options()
        )
    assert caught.value.code == 65
