"""Embeddings: losses against sentence-transformers, laws of a step that is cut, and a model that it loads."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
import token_tables  # noqa: E402
from agreement import against  # noqa: E402
from torch.nn.functional import cosine_similarity, normalize  # noqa: E402

from postmill.io.errors import ArtifactError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.embedding_options import Embedding  # noqa: E402
from postmill.stages.train.objectives.interface import StepRows  # noqa: E402

from . import laws  # noqa: E402
from .test_seq_cls import write_encoder  # noqa: E402

QUERIES, NEGATIVES, SIZE = 6, 2, 16
LABELS = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def step(seed=0):
    """Vectors of six queries with a text that fits and two that do not, in a shuffled order, as a step has them."""
    generator = torch.Generator().manual_seed(seed)
    count = QUERIES * (2 + NEGATIVES)
    vectors = torch.randn(count, SIZE, generator=generator, dtype=torch.float64)
    group = torch.arange(QUERIES).repeat_interleave(2 + NEGATIVES)
    member = torch.tensor([0, 2] + [1] * NEGATIVES).repeat(QUERIES)
    order = torch.randperm(count, generator=generator)
    labels = torch.tensor(LABELS, dtype=torch.float64)[group]
    rows = StepRows(torch.arange(count), group[order], member[order])
    return torch.cat([vectors, labels[:, None]], 1)[order].requires_grad_(), rows


def columns(leaf, rows):
    """The same as sentence-transformers has them: queries, the texts that fit, and a tensor for each negative."""

    def of(member):
        found = (rows.member_R == member).nonzero().flatten()
        return leaf[found[rows.group_R[found].argsort(stable=True)], :-1]

    wrong = of(1).reshape(QUERIES, NEGATIVES, SIZE)
    return [of(0), of(2), *(wrong[:, i] for i in range(NEGATIVES))]


def theirs(name, leaf, rows, **options):
    losses = pytest.importorskip("sentence_transformers.losses", reason="the oracle")
    given = columns(leaf, rows)
    if name == "MultipleNegativesRankingLoss":
        return losses.MultipleNegativesRankingLoss(None, **options).compute_loss_from_embeddings(given, None)
    return getattr(losses, name)(None, **options).compute_loss_from_embeddings(given[:2], torch.tensor(LABELS).double())


CASES = {
    "infonce": (Embedding(), "MultipleNegativesRankingLoss", {"scale": 20.0}),
    "warm": (Embedding(temperature=0.2), "MultipleNegativesRankingLoss", {"scale": 5.0}),
    "queries": (
        Embedding(include_queries=True),
        "MultipleNegativesRankingLoss",
        {"scale": 20.0, "directions": ("query_to_doc", "query_to_query")},
    ),
    "documents": (
        Embedding(include_documents=True),
        "MultipleNegativesRankingLoss",
        {"scale": 20.0, "directions": ("query_to_doc", "doc_to_doc")},
    ),
    "cosine": (Embedding(loss="cosine"), "CosineSimilarityLoss", {}),
    "contrastive": (Embedding(loss="contrastive", margin=0.7), "ContrastiveLoss", {"margin": 0.7}),
    "online": (Embedding(loss="online_contrastive"), "OnlineContrastiveLoss", {"margin": 0.5}),
    "cosent": (Embedding(loss="cosent"), "CoSENTLoss", {"scale": 20.0}),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_loss_is_sentence_transformers(name):
    options, their_name, their_options = CASES[name]
    leaf, rows = step()
    expected = theirs(their_name, leaf, rows, **their_options)
    [their_grad] = torch.autograd.grad(expected, leaf)
    ours = options.build().step_loss(leaf, rows, {"groups": float(QUERIES)})
    [our_grad] = torch.autograd.grad(ours.total, leaf)
    against(
        "embedding", "sentence-transformers' losses", (ours.total, our_grad[:, :-1]), (expected, their_grad[:, :-1])
    )
    assert float(ours.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    torch.testing.assert_close(our_grad[:, :-1], their_grad[:, :-1], rtol=1e-7, atol=1e-10)


def infonce(leaf, rows, allowed, tau=0.05):
    """-log softmax at the own text, over the candidates that `allowed(query, text, cosine, own)` lets count."""
    query, right, *wrong = columns(leaf, rows)
    total = 0.0
    for i in range(QUERIES):
        own = cosine_similarity(query[i], right[i], 0)
        others = [(j, cosine_similarity(query[i], text[j], 0)) for text in (right, *wrong) for j in range(QUERIES)]
        kept = [s for n, (j, s) in enumerate(others) if n != i and allowed(i, j, float(s), float(own))]
        total = total + torch.logsumexp(torch.stack([own, *kept]) / tau, 0) - own / tau
    return total / QUERIES


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        (Embedding(in_batch=False), lambda i, j, s, own: i == j),
        (Embedding(false_negatives=0.1), lambda i, j, s, own: s <= own + 0.1),
        (Embedding(false_negatives=0.0), lambda i, j, s, own: s <= own),
    ],
)
def test_masks_leave_out_what_they_say(options, allowed):
    leaf, rows = step(seed=3)
    ours = options.build().step_loss(leaf, rows, {"groups": float(QUERIES)}).total
    expected = infonce(leaf, rows, allowed)
    assert float(expected.detach()) != pytest.approx(float(infonce(leaf, rows, lambda *_: True).detach()), rel=1e-3)
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    mine, other = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (ours, expected))
    torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-12)


def test_matryoshka_adds_the_losses_of_the_first_numbers():
    leaf, rows = step()
    norms = {"groups": float(QUERIES)}
    got = Embedding(matryoshka=[8, 4]).build().step_loss(leaf, rows, norms)
    cut = [torch.cat([leaf[:, :size], leaf[:, -1:]], 1) for size in (SIZE, 8, 4)]
    each = [float(Embedding().build().step_loss(part, rows, norms).total.detach()) for part in cut]
    assert float(got.total.detach()) == pytest.approx(sum(each), rel=1e-12)
    assert [float(part) for part in got.parts.values()] == pytest.approx(each)


def groups(count=9, seed=1):
    """Queries and texts that share their first tokens, with one or two texts that do not fit."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        topic = rng.integers(3, tiny_model.VOCAB, 3)

        def text(head, side, number=number):
            ids = [*head, *rng.integers(3, tiny_model.VOCAB, int(rng.integers(1, 6))), 2]
            label = float(number % 2)
            return token_tables.row(ids, pair_id=token_tables.pair_id(f"g{number}"), side=side, label=label)

        rows += [text(topic, 0), text(topic, 2)]
        rows += [text(rng.integers(3, tiny_model.VOCAB, 3), 1) for _ in range(1 + number % 2)]
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("embedding")
    bases = {"llama": tiny_model.write_model(folder / "llama"), "bert": write_encoder(folder / "bert")}
    for name, base in bases.items():
        laws.write_twice(folder, f"{name}-packed", base, groups())
        tiny_model.write_packed(folder / f"{name}-single", base, tiny_model.make_rows(6))
    return folder


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", Embedding(pooling="last", matryoshka=[8])),
        ("bert", Embedding(pooling="cls", false_negatives=0.1)),
        ("bert", Embedding(loss="cosent")),
        ("bert", Embedding(loss="online_contrastive")),
    ],
)
def test_cuts_do_not_matter(world, kind, options):
    """However the step is cut, each query sees all texts of the step."""
    packed = (world / f"{kind}-packed", world / f"{kind}-packed-alone")
    laws.cuts_do_not_matter(options, packed, world / kind)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_ranks_and_stops_do_not_matter(world, tmp_path, kind):
    ports = {"packed": [str(world / f"{kind}-packed")], "model": [str(world / kind)]}
    laws.two_ranks_learn_as_one(Embedding(), ports, tmp_path)
    laws.resumes_to_the_same_bytes(Embedding(), ports, tmp_path)


@pytest.mark.parametrize(("kind", "pooling"), [("llama", "last"), ("bert", "mean")])
def test_learns_and_is_read_by_sentence_transformers_and_score(world, tmp_path, kind, pooling):
    ports = {"packed": [str(world / f"{kind}-packed")], "model": [str(world / kind)]}
    cfg = make(Train, objective=Embedding(pooling=pooling), tuner="full", bins_per_step=8, epochs=12, lr=3e-3)
    run_stage(STAGE, cfg, ports, tmp_path / "run", Options(threads=1))
    found = laws.lines(tmp_path / "run")
    assert found[-1]["loss"] < 0.6 * found[0]["loss"]
    assert found[-1]["accuracy"] >= found[0]["accuracy"]
    given = {"rows": [str(world / f"{kind}-packed")], "model": [str(tmp_path / "run")]}
    run_stage(SCORE, Score(), given, tmp_path / "scores", Options())
    reader = PackedReader(world / f"{kind}-packed")
    ours = torch.from_numpy(ScoresReader(tmp_path / "scores").values(np.arange(reader.num_rows)))
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(ours)))
    model = transformers.AutoModel.from_pretrained(tmp_path / "run").eval()
    for row in range(reader.num_rows):
        ids = torch.from_numpy(reader.token_rows.lay(np.array([row])).input_ids.astype(np.int64))
        with torch.no_grad():
            hidden = model(ids[None]).last_hidden_state[0]
        pooled = hidden[-1] if pooling == "last" else hidden.mean(0)
        torch.testing.assert_close(ours[row], normalize(pooled, dim=0), rtol=1e-4, atol=1e-5)
    modules = json.loads((tmp_path / "run" / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    config = json.loads((tmp_path / "run" / "1_Pooling" / "config.json").read_text())
    assert [name for name, value in config.items() if value is True and name.startswith("pooling")] == [
        {"last": "pooling_mode_lasttoken", "mean": "pooling_mode_mean_tokens"}[pooling]
    ]


def test_rows_that_are_no_groups_are_refused(world, tmp_path):
    for name, message in {"bert-single": "are in no group of a query and its texts"}.items():
        ports = {"packed": [str(world / name)], "model": [str(world / "bert")]}
        with pytest.raises(ArtifactError, match=message) as caught:
            run_stage(STAGE, make(Train, objective="embedding", bins_per_step=1), ports, tmp_path / "no", Options())
        assert caught.value.code == 65
