"""Networks between the layers: each trains, goes on to the same bytes, and is computed alike by training, by `score`,
by the engine and by plain transformers with `attach`; LoReFT equals its formula."""

import json

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import numpy as np  # noqa: E402
import tiny_model  # noqa: E402
from tuner_laws import config, given, load, losses, trained  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.merge.config import STAGE as MERGE  # noqa: E402
from postmill.stages.merge.config import Merge  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared.hf import add_adapters  # noqa: E402
from postmill.stages.shared.inserts import Intervention, attach, prompt_ends  # noqa: E402
from postmill.stages.train.config import STAGE  # noqa: E402

WAYS = [
    ("adapter", {"length": 5}),
    ("adapter", {"length": 5, "sites": "mlp"}),
    ("scedit", {"length": 5}),
    ("res-tuning", {"length": 5}),
    ("reft", {"rank": 3}),
    ("reft", {"rank": 3, "positions": "f2+l3", "share": True, "layers": [1]}),
    ("reft", {"rank": 3, "positions": "all"}),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("inserts")
    base = tiny_model.write_model(folder / "base")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(16, seed=3))
    tiny_model.write_packed(folder / "valid", base, tiny_model.make_rows(4, seed=9))
    return folder


@pytest.mark.parametrize(("name", "options"), WAYS, ids=str)
def test_trains_goes_on_and_is_computed_alike_everywhere(world, tmp_path, name, options):
    run = trained(world, config(name, **options), tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    assert loss_alone(attach(load(world / "base"), run), world / "valid") == pytest.approx(valid, abs=2e-6)
    ports = {"rows": [str(world / "valid")], "model": [str(world / "base")], "adapter": [str(run)]}
    run_stage(SCORE, Score(), ports, tmp_path / "scores", Options(threads=1))
    assert mean_of_scores(tmp_path / "scores", world / "valid") == pytest.approx(valid, abs=2e-6)
    with pytest.raises(ConfigError, match="cannot be merged"):
        parts = {"parts": [str(run)], "model": [str(world / "base")]}
        run_stage(MERGE, Merge(parity="off"), parts, tmp_path / "merged", Options(threads=1))


@pytest.mark.parametrize(("name", "options"), [WAYS[0], WAYS[3], WAYS[4]], ids=str)
def test_micro_batches_change_nothing(world, tmp_path, name, options):
    found = []
    for micro_bins in (1, 2, 4):
        target = tmp_path / f"run-{micro_bins}"
        run_stage(STAGE, config(name, micro_bins=micro_bins, **options), given(world), target, Options(threads=1))
        found.append((*losses(target), json.loads((target / "metrics.jsonl").read_text().splitlines()[0])["grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] == pytest.approx(found[2], rel=1e-5)


@pytest.mark.parametrize(("name", "options"), [*WAYS[:5], WAYS[6]], ids=str)
def test_generates_in_the_engine_as_in_transformers(world, tmp_path, name, options):
    from postmill.stages.shared.engine.local import LocalEngine
    from postmill.stages.shared.engine.protocol import Request, Sampling

    run_stage(STAGE, config(name, **options), given(world), tmp_path / "run", Options(threads=1))
    model = attach(load(world / "base"), tmp_path / "run")
    prompts = [[5, 9, 2, 11, 7], [3, 8]]
    engine = LocalEngine([world / "base", tmp_path / "run"], dtype="float32", threads=1)
    requests = [Request(key=str(n), prompt_ids=ids, seed=0) for n, ids in enumerate(prompts)]
    replies = {r.key: r for r in engine.answer(requests, Sampling(max_new_tokens=4, temperature=0.0))}
    for number, ids in enumerate(prompts):
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        assert list(replies[str(number)].ids) == out[0, len(ids) :].tolist()


def test_loreft_equals_its_formula_and_keeps_its_rows_orthonormal():
    torch.manual_seed(5)
    part = Intervention(7, 3)
    with torch.no_grad():
        part.source.weight.normal_()
        assert torch.allclose(part.rotation_HR(), part.rotation, atol=1e-6)
        part.rotation.add_(torch.randn(7, 3)).mul_(0.9)
    hidden = torch.randn(4, 7)
    rotation = part.rotation_HR().detach().double()
    assert torch.allclose(rotation.T @ rotation, torch.eye(3, dtype=torch.float64), atol=1e-6)
    wide = hidden.double()
    source = wide @ part.source.weight.detach().double().T + part.source.bias.detach().double()
    wanted = wide + (source - wide @ rotation) @ rotation.T
    assert torch.allclose((hidden + part(hidden)).double(), wanted, atol=1e-6)
    # in the subspace the state is what W says, beside it what it was
    after = (hidden + part(hidden)).double()
    assert torch.allclose(after @ rotation, source, atol=1e-5)


def test_prompts_end_before_the_first_scored_token():
    mask = torch.tensor([0, 0, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)
    assert prompt_ends(mask, (0, 4, 6, 9)).tolist() == [3, 6, 9]
    assert prompt_ends(torch.zeros(3, dtype=torch.bool), (0, 1, 3)).tolist() == [1, 3]


def test_edited_tokens_are_the_first_and_last_of_the_prompt(world):
    """A token past the prompt is not edited, and its hidden state changes only by what it attends to."""
    from postmill.stages.shared.inserts import Reft, insert

    torch.manual_seed(0)
    model = load(world / "base")
    whole = insert(model, Reft(2, [1], (1, 1), False))  # the last layer: nothing attends to what it gives
    ids = torch.tensor([[4, 9, 2, 7, 5, 3]])
    plain = load(world / "base").model(ids).last_hidden_state[0]
    whole.tell((0, 2, 6), torch.tensor([2, 5]))
    places = [1, 4]
    with torch.no_grad():
        model.model(ids)
    assert [p.tolist() for p in whole.places] == [[0, 2], places]
    whole.tell((0, 6), torch.tensor([3]))
    edited = model.model(ids).last_hidden_state[0]
    changed = ((edited - plain).abs().amax(-1) > 1e-6).nonzero().squeeze(-1).tolist()
    assert changed == [0, 2]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reft", {"layers": [7]}, "--reft.layers 7: the model has layers 0 to 1"),
        ("res-tuning", {"gradient_checkpointing": True}, "--gradient-checkpointing --tuner res-tuning"),
        ("reft", {"shard": "fsdp"}, "--tuner reft"),
    ],
)
def test_what_does_not_fit_is_refused(world, tmp_path, name, options, message):
    with pytest.raises((ConfigError, ArtifactError), match=message):
        run_stage(STAGE, config(name, **options), given(world), tmp_path / "run", Options(threads=1))


def test_positions_are_checked():
    for text, message in (("f1", "expected all"), ("f0+l0", "nothing would be edited")):
        with pytest.raises(ValueError, match=message):
            config("reft", positions=text)


def test_inserts_stand_alone(world, tmp_path):
    run_stage(STAGE, config("scedit", length=2), given(world), tmp_path / "run", Options(threads=1))
    with pytest.raises(ConfigError, match="stand alone"):
        add_adapters(load(world / "base"), {tmp_path / "run": 0.5})


def loss_alone(model, packed):
    """Weighted loss of each row alone from the model's own logits, told where its prompt ends."""
    reader, total, count = PackedReader(packed), 0.0, 0
    for number in range(len(reader)):
        found = reader.bin(number)
        for start, end in zip(found.cu_seqlens[:-1], found.cu_seqlens[1:], strict=True):
            ids = torch.from_numpy(found.input_ids[start:end].astype(np.int64))
            weights = torch.from_numpy(found.weights[start:end])
            trained_at = (weights[1:] != 0).nonzero()
            prompt = int(trained_at[0, 0]) + 1 if len(trained_at) else len(ids)
            if model.inserts.reads_prompts:
                model.inserts.tell((0, len(ids)), torch.tensor([prompt]))
            with torch.no_grad():
                logp = model(ids[None]).logits[0, :-1].log_softmax(-1)
            total += float((-weights[1:] * logp.gather(-1, ids[1:, None])[:, 0]).double().sum())
            count += int((weights[1:] != 0).sum())
    return total / count


def mean_of_scores(scores, packed):
    """The same from what `score` wrote."""
    reader, table, total, count = PackedReader(packed), ScoresReader(scores), 0.0, 0
    for number in range(len(reader)):
        found = reader.bin(number)
        logp = table.tokens(found.rows, np.diff(found.cu_seqlens).astype(np.int64), "logp")
        at = np.setdiff1d(np.flatnonzero(found.weights), found.cu_seqlens[:-1])
        total += float((-found.weights[at] * logp[at]).sum())
        count += len(at)
    return total / count
