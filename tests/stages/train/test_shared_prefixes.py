"""What rows share is computed once, and nothing of the loss or its gradient shows it."""

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
import token_tables  # noqa: E402
from tiny_families import FAMILIES, LEAKY, build, forward_of  # noqa: E402

from postmill.io.packed import Bin, PackedReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.shared import attention  # noqa: E402
from postmill.stages.shared.asked import Ask  # noqa: E402
from postmill.stages.shared.batch import collate  # noqa: E402
from postmill.stages.shared.prefixes import share  # noqa: E402
from postmill.stages.train.columns import BatchSource  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.needs import Needs  # noqa: E402
from postmill.stages.train.objectives.rl_options import PRESETS  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402


def batch_of(rows, prompt_length, **columns):
    """Rows end to end; what follows the first `prompt_length` tokens is scored."""
    starts = np.cumsum([0] + [len(row) for row in rows]).astype(np.int32)
    weights = np.concatenate([(np.arange(len(row)) >= prompt_length).astype(np.float32) for row in rows])
    positions = np.concatenate([np.arange(len(row), dtype=np.int32) for row in rows])
    ids = np.concatenate(rows).astype(np.int32)
    return collate([Bin(ids, positions, starts, weights, np.arange(len(rows)))], columns)


def shared(batch):
    found = share(batch.input_ids_1T[0].numpy(), batch.row_starts)
    assert found is not None
    return batch._replace(shared=found)


def answers(prompts=3, samples=4, prompt_length=11, seed=0, vocabulary=61):
    """Several answers to several prompts that begin with the same four tokens; one answer is there twice."""
    rng = np.random.default_rng(seed)
    system = rng.integers(3, vocabulary, 4)
    rows = []
    for _ in range(prompts):
        prompt = np.concatenate([system, rng.integers(3, vocabulary, prompt_length - 4)])
        rows += [np.concatenate([prompt, rng.integers(3, vocabulary, rng.integers(1, 9))]) for _ in range(samples)]
    return [*rows, rows[1]]


def test_segments_are_the_tree_of_the_rows():
    """On many small cases: no beginning twice, every token at its place, behind the tokens of its row."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = [rng.integers(0, 3, rng.integers(1, 9)) for _ in range(rng.integers(1, 9))]
        ids, starts = np.concatenate(rows), tuple(np.cumsum([0] + [len(row) for row in rows]).tolist())
        beginnings = {tuple(row[: n + 1]) for row in rows for n in range(len(row))}
        found = share(ids, starts)
        if found is None:
            assert len(beginnings) == len(ids)
            continue
        assert len(found.token_S) == len(beginnings) == found.starts[-1]
        np.testing.assert_array_equal(ids[found.token_S.numpy()][found.place_T.numpy()], ids)
        segment = np.repeat(np.arange(len(found.parents)), np.diff(found.starts))
        for begin, end in itertools.pairwise(starts):
            places = found.place_T[begin:end].tolist()
            assert found.parents[segment[places[0]]] == -1
            for before, after in itertools.pairwise(places):
                inside = segment[before] == segment[after] and after == before + 1
                onward = after == found.starts[segment[after]] and found.parents[segment[after]] == segment[before]
                assert inside or (onward and before + 1 == found.starts[segment[before] + 1])


@pytest.mark.parametrize("family", [*FAMILIES])
def test_log_probs_and_gradients_are_those_of_rows_computed_alone(family):
    """With sliding windows and soft caps too, in less than half of the tokens; families' norms are float32 inside."""
    model = build(family, implementation=attention.ROWS)
    forward, batch = forward_of(model).eval(), batch_of(answers(), 11)
    assert forward.share_prefixes()
    assert len(shared(batch).shared.token_S) < len(batch.row_T) / 2
    found = []
    for given in (batch, shared(batch)):
        model.zero_grad()
        outputs = forward(given, Ask(frozenset({"logp", "entropy"})))
        weights = torch.linspace(-1, 1, len(outputs.logp_T), dtype=torch.float64)
        (outputs.logp_T * weights + 0.1 * outputs.entropy_T).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((outputs.logp_T.detach(), outputs.entropy_T.detach(), gradient))
    for plain, once in zip(*found, strict=True):
        assert float((once - plain).abs().max()) <= 1e-6 * float(plain.abs().max())


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo", "sapo"])
def test_losses_of_samples_are_the_same(name):
    """In float32 to 1e-6, the value and every gradient."""
    rows = answers(seed=1)
    rng = np.random.default_rng(2)
    tokens, objective = sum(map(len, rows)), PRESETS[name].build()
    columns = {
        "advantage": rng.normal(size=len(rows)),
        "engine_logp": rng.normal(-4, 0.1, tokens),
        "old_logp": rng.normal(-4, 0.1, tokens),
    }
    batch = batch_of(rows, 11, **columns)
    norms = {"live": float(len(rows)), "sampled": float(batch.mask_T.sum())}
    model = build(dtype=torch.float32, implementation=attention.ROWS)
    forward = forward_of(model, torch.float32).eval()
    forward.share_prefixes()
    found = []
    for given in (batch, shared(batch)):
        model.zero_grad()
        loss = objective.loss(forward(given, objective.ask(given, norms)), given, norms, {})
        loss.total.backward()
        found.append((loss.total.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (plain, gradient), (once, gradient_once) = found
    assert float(gradient.abs().max()) > 0
    assert float((once - plain).abs()) <= 1e-6 * max(1.0, float(plain.abs()))
    assert float((gradient_once - gradient).abs().max()) <= 1e-6 * float(gradient.abs().max())


def test_the_model_computes_fewer_tokens():
    model = build(implementation=attention.ROWS)
    forward, batch = forward_of(model).eval(), shared(batch_of(answers(), 11))
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: seen.append(given[0].numel()))
    forward(batch, Ask(frozenset({"logp"})))
    forward.share_prefixes()
    forward(batch, Ask(frozenset({"logp"})))
    assert seen == [len(batch.row_T), len(batch.shared.token_S)]


def test_nothing_is_shared_where_rows_would_differ():
    """By noise, by a state that layers carry along, or where another kernel keeps rows apart."""
    assert not forward_of(build(implementation=attention.ROWS), neftune_alpha=5.0).share_prefixes()
    assert not forward_of(build(implementation="sdpa")).share_prefixes()
    noisy = build(implementation=attention.ROWS)
    noisy.model.layers[0].dropout = torch.nn.Dropout(0.1)
    assert not forward_of(noisy).share_prefixes()
    carries = forward_of(build(next(iter(LEAKY)), implementation=attention.ROWS))
    carries.compute_each_row()
    assert not carries.share_prefixes()


def test_rows_are_cut_only_where_that_saves_enough():
    """Twenty rows of a hundred tokens that begin with the same `alike` tokens: 0.95 of those are saved."""
    rng = np.random.default_rng(4)
    for alike, is_shared in ((3, False), (13, False), (14, True)):
        rows = [np.concatenate([np.arange(alike), [100 + n], rng.integers(0, 99, 99 - alike)]) for n in range(20)]
        found = share(np.concatenate(rows), tuple(range(0, 2001, 100)), least=1 / 8)
        assert (found is not None) == is_shared


def test_chats_with_one_system_message_are_learned_as_if_each_were_alone(tmp_path):
    """`train` itself, by losses of steps and the validation; a model with an adapter, so that its base is kept."""
    base = tiny_model.write_model(tmp_path / "base")
    rng = np.random.default_rng(8)
    system = rng.integers(3, tiny_model.VOCAB, 12).tolist()
    chats = [[*system, *rng.integers(3, tiny_model.VOCAB, rng.integers(4, 20)).tolist(), 2] for _ in range(24)]
    rows = [token_tables.row(ids, [(len(system) + 2, len(ids), 1.0)]) for ids in chats]
    for name, some in (("packed", rows[:18]), ("held", rows[18:])):
        tiny_model.write_packed(tmp_path / name, base, some, row_tokens=120)
    batch = BatchSource(PackedReader(tmp_path / "packed"), Needs(), shares=True).load(np.array([0]))
    assert len(batch.shared.token_S) < 0.75 * len(batch.row_T)

    lines = {}
    for shares in (True, False):
        cfg = make(Train, lr=1e-2, bins_per_step=2, steps=4, save_every=0, shared_prefixes=shares, tuner=Lora(rank=4))
        given = {"packed": [str(tmp_path / "packed")], "valid": [str(tmp_path / "held")], "model": [str(base)]}
        run_stage(STAGE, cfg, given, tmp_path / f"run-{shares}", Options(threads=1))
        metrics = (tmp_path / f"run-{shares}" / "metrics.jsonl").read_text().splitlines()
        lines[shares] = [json.loads(line) for line in metrics]
    for once, alone in zip(*lines.values(), strict=True):
        assert once["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert once.get("valid_loss", 0) == pytest.approx(alone.get("valid_loss", 0), rel=1e-5)
    assert lines[True][-1]["loss"] < lines[True][0]["loss"]
