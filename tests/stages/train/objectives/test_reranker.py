"""Rerankers: losses against those of sentence-transformers, laws of a step, and types of a pair's texts."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
import token_tables  # noqa: E402
from agreement import against  # noqa: E402

from postmill.io.errors import ArtifactError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared.forward import token_types  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.reranker_options import Reranker  # noqa: E402

from . import laws  # noqa: E402
from .test_seq_cls import write_encoder  # noqa: E402

BORDER = 2


def pairs(count=8, seed=0, wrong=2):
    """A query and a text around a border; they fit where they share their first token."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        query = rng.integers(3, tiny_model.VOCAB, 3).tolist()
        for side in [2, *[1] * wrong]:
            first = query[0] if side == 2 else int(rng.integers(3, tiny_model.VOCAB))
            text = [first, *rng.integers(3, tiny_model.VOCAB, int(rng.integers(1, 5))).tolist()]
            ids = [1, *query, BORDER, *text, BORDER]
            rows.append(token_tables.row(ids, pair_id=token_tables.pair_id(f"q{number}"), side=side))
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reranker")
    bases = {"llama": tiny_model.write_model(folder / "llama"), "bert": write_encoder(folder / "bert")}
    for name, base in bases.items():
        laws.write_twice(folder, f"{name}-packed", base, pairs(), row_tokens=64)
    tiny_model.write_packed(folder / "fits-only", bases["bert"], pairs(wrong=0), row_tokens=64)
    return folder


def values_of(loss, options, logits, labels):
    """Our loss of one value a text: groups of one text that fits, then two that do not."""
    group = torch.arange(len(logits) // 3).repeat_interleave(3)
    member = torch.where(labels > 0, 2, 1)
    batch = type("Rows", (), {"group_R": group, "member_R": member})
    outputs = type("Outputs", (), {"values_NC": logits[:, None]})
    norms = {"rows": float(len(logits)), "positives": float(len(logits) // 3)}
    return options.build().loss(outputs, batch, norms, {}).total


def test_the_losses_are_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses", reason="the oracle")
    logits = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 0.0] * 4, dtype=torch.float64)
    ours = values_of("pointwise", Reranker(positive_weight=3.0), logits, labels)
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))(logits, labels)
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert losses.BinaryCrossEntropyLoss.__init__.__defaults__ is not None  # its loss is torch's, with a pos_weight
    # ListNet's target is softmax of the labels: with one label far above the others it is the text that fits
    ours = values_of("listwise", Reranker(loss="listwise", temperature=0.5), logits, labels)
    lists = (logits / 0.5).reshape(4, 3)
    target = torch.softmax(1e9 * labels.reshape(4, 3), 1)
    expected = -(target * lists.log_softmax(1)).sum(1).mean()
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    mine, other = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (ours, expected))
    against("reranker", "ListNet as sentence-transformers has it", (ours, mine), (expected, other))
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)


def test_a_text_behind_a_border_has_the_other_type():
    ids = torch.tensor([[1, 7, 8, 2, 9, 2, 1, 5, 2, 1, 6, 2, 4, 4, 2]])
    assert token_types(ids, (0, 6, 9, 15)).tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
def test_cuts_do_not_matter(world, kind, loss):
    packed = (world / f"{kind}-packed", world / f"{kind}-packed-alone")
    laws.cuts_do_not_matter(Reranker(loss=loss), packed, world / kind)


def test_learns_and_is_read_by_transformers_with_both_types(world, tmp_path):
    ports = {"packed": [str(world / "bert-packed")], "model": [str(world / "bert")]}
    cfg = make(Train, objective=Reranker(loss="listwise"), tuner="full", bins_per_step=2, epochs=25, lr=1e-2)
    run_stage(STAGE, cfg, ports, tmp_path / "run", Options(threads=1))
    found = laws.lines(tmp_path / "run")
    assert found[-1]["loss"] < 0.6 * found[0]["loss"]
    given = {"rows": [str(world / "bert-packed")], "model": [str(tmp_path / "run")]}
    run_stage(SCORE, Score(), given, tmp_path / "scores", Options())
    reader = PackedReader(world / "bert-packed")
    values = ScoresReader(tmp_path / "scores").values(np.arange(reader.num_rows))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    for row in range(reader.num_rows):
        ids = torch.from_numpy(reader.token_rows.lay(np.array([row])).input_ids.astype(np.int64))
        types = torch.tensor([[0] * 5 + [1] * (len(ids) - 5)])
        with torch.no_grad():
            theirs = model(ids[None], token_type_ids=types).logits[0]
        torch.testing.assert_close(torch.from_numpy(values[row]), theirs, rtol=1e-4, atol=1e-5)


def test_stops_and_ranks_do_not_matter(world, tmp_path):
    ports = {"packed": [str(world / "bert-packed")], "model": [str(world / "bert")]}
    laws.two_ranks_learn_as_one(Reranker(loss="listwise"), ports, tmp_path)
    laws.resumes_to_the_same_bytes(Reranker(), ports, tmp_path)


def test_a_list_without_texts_that_do_not_fit_is_refused(world, tmp_path):
    ports = {"packed": [str(world / "fits-only")], "model": [str(world / "bert")]}
    cfg = make(Train, objective=Reranker(loss="listwise"), bins_per_step=1)
    with pytest.raises(ArtifactError, match="texts that fit a query and texts that do not") as caught:
        run_stage(STAGE, cfg, ports, tmp_path / "no", Options())
    assert caught.value.code == 65
