"""Rerankers that stay language models: scores and losses against transformers in float64, laws of a step, what reads
them afterwards."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from agreement import against  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.merge.config import STAGE as MERGE  # noqa: E402
from postmill.stages.merge.config import Merge  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.reranker_options import Reranker  # noqa: E402

from . import laws  # noqa: E402
from .test_reranker import pairs  # noqa: E402

YES, NO = 7, 8
NAMES = {"yes": YES, "no": NO}


def write_base(folder, **config):
    """A causal language model whose tokenizer knows words, `yes` and `no` among them."""
    tiny_model.write_model(folder, **config)
    names = {number: name for name, number in NAMES.items()}
    vocab = {names.get(number, f"w{number}"): number for number in range(tiny_model.VOCAB)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "truncation": None,
        "padding": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("generative")
    base = write_base(folder / "base")
    laws.write_twice(folder, "packed", base, pairs(), row_tokens=64)
    return folder


def rows_of(packed):
    """Each row's ids, group and side, in the order of the tables."""
    reader = PackedReader(packed)
    rows = np.arange(reader.num_rows)
    columns = reader.columns(rows, ["pair_id", "side"])
    ids = [torch.from_numpy(reader.token_rows.lay(rows[n : n + 1]).input_ids.astype(np.int64)) for n in rows]
    return ids, columns["pair_id"].tolist(), columns["side"].tolist()


def score_of(model, ids):
    """What the card of Qwen3-Reranker computes, before the exponential: log-odds of yes among yes and no."""
    logits = model(ids[None]).logits[0, -1]
    logp = torch.stack([logits[NO], logits[YES]]).log_softmax(0)
    return logp[1] - logp[0]


def formula(options, model, packed):
    """ms-swift's losses of generative rerankers, of all rows as one step."""
    ids, groups, sides = rows_of(packed)
    values = torch.stack([score_of(model, row) for row in ids])
    if options.loss == "pointwise":
        fits = torch.tensor([float(side == 2) for side in sides], dtype=values.dtype)
        weight = torch.tensor(options.positive_weight, dtype=values.dtype)
        return F.binary_cross_entropy_with_logits(values, fits, pos_weight=weight)
    lists = []
    for group in dict.fromkeys(groups):
        members = [n for n, other in enumerate(groups) if other == group]
        order = sorted(members, key=lambda n: sides[n] != 2)  # the one that fits comes first
        lists.append(F.cross_entropy(values[order][None] / options.temperature, torch.tensor([0])))
    return torch.stack(lists).mean()


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
def test_loss_and_gradient_are_those_of_the_formula_in_float64(world, loss):
    options = Reranker(loss=loss, answers=["yes", "no"], positive_weight=2.0, temperature=0.5)
    ours, gradient, metrics = laws.whole_step(options, world / "packed", world / "base", {}, 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    torch.manual_seed(3)
    for parameter in model.parameters():  # as `laws` moves it
        parameter.data += 0.02 * torch.randn_like(parameter)
    model = model.double()
    expected = formula(options, model, world / "packed")
    expected.backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    against("reranker", f"generative, {loss}, formula in float64", (ours, gradient), (float(expected.detach()), theirs))
    assert ours == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float((gradient - theirs).abs().max()) <= 2e-5 * float(theirs.abs().max())
    assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
def test_cuts_do_not_matter(world, loss):
    packed = (world / "packed", world / "packed-alone")
    laws.cuts_do_not_matter(Reranker(loss=loss, answers=["yes", "no"]), packed, world / "base")


def test_ranks_and_stops_do_not_matter(world, tmp_path):
    ports = {"packed": [str(world / "packed")], "model": [str(world / "base")]}
    laws.two_ranks_learn_as_one(Reranker(loss="listwise", answers=["yes", "no"]), ports, tmp_path)
    laws.resumes_to_the_same_bytes(Reranker(answers=["yes", "no"]), ports, tmp_path)


def read(folder, packed, target, cfg=None, **more):
    """What `score` says of each row."""
    run_stage(SCORE, cfg or Score(), {"rows": [str(packed)], "model": [str(folder)], **more}, target, Options())
    reader = ScoresReader(target)
    return reader.values(np.arange(len(reader)))[:, 0]


def test_learns_and_stays_a_language_model_that_score_reads(world, tmp_path):
    ports = {"packed": [str(world / "packed")], "model": [str(world / "base")]}
    objective = Reranker(loss="listwise", answers=["yes", "no"])
    cfg = make(Train, objective=objective, tuner="full", bins_per_step=2, epochs=25, lr=1e-2)
    run_stage(STAGE, cfg, ports, tmp_path / "run", Options(threads=1))
    found = laws.lines(tmp_path / "run")
    assert found[-1]["loss"] < 0.6 * found[0]["loss"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype=torch.float64)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    with torch.no_grad():
        theirs = [float(score_of(model, ids)) for ids in rows_of(world / "packed")[0]]
    np.testing.assert_allclose(read(tmp_path / "run", world / "packed", tmp_path / "scores"), theirs, rtol=2e-5)
    plain = tmp_path / "plain"  # as another tool has it: nothing says that it is a reranker
    plain.mkdir()
    for path in (tmp_path / "run").glob("*"):
        if path.name in ("config.json", "tokenizer.json", "model.safetensors"):
            (plain / path.name).write_bytes(path.read_bytes())
    said = read(plain, world / "packed", tmp_path / "said", Score(answers=["yes", "no"]))
    np.testing.assert_allclose(said, theirs, rtol=2e-5)
    with pytest.raises(ArtifactError, match="scores of tokens"):
        read(plain, world / "packed", tmp_path / "tokens", Score(where="all"))


def test_a_merged_adapter_is_a_reranker_still(world, tmp_path):
    ports = {"packed": [str(world / "packed")], "model": [str(world / "base")]}
    cfg = make(Train, objective=Reranker(answers=["yes,no"]), tuner="lora", bins_per_step=2, epochs=3, lr=1e-2)
    run_stage(STAGE, cfg, ports, tmp_path / "run", Options(threads=1))
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    beside = read(world / "base", world / "packed", tmp_path / "scores", adapter=[str(tmp_path / "run")])
    before = read(world / "base", world / "packed", tmp_path / "before", Score(answers=["yes", "no"]))
    assert np.abs(beside - before).max() > 1e-3
    merged = {"parts": [str(tmp_path / "run")], "model": [str(world / "base")]}
    run_stage(MERGE, Merge(), merged, tmp_path / "merged", Options())
    after = read(tmp_path / "merged", world / "packed", tmp_path / "after")
    np.testing.assert_allclose(after, beside, rtol=1e-4, atol=1e-5)


def test_answers_have_to_be_two_tokens(world, tmp_path):
    ports = {"packed": [str(world / "packed")], "model": [str(world / "base")]}
    for answers, what in (
        (["yes", "not at all"], "'not at all' is 3 tokens"),
        (["yes", ""], "'' is 0 tokens"),
        (["strange", "w0"], "'strange' and 'w0' are one token"),
    ):
        cfg = make(Train, objective=Reranker(answers=answers), bins_per_step=1)
        with pytest.raises(ConfigError, match=what) as caught:
            run_stage(STAGE, cfg, ports, tmp_path / "no", Options())
        assert caught.value.code == 2
    for wrong in (["yes"], ["yes", "yes"], ["yes", "no", "maybe"]):
        with pytest.raises(ValueError, match="expected two tokens"):
            Reranker(answers=wrong)
    with pytest.raises(ValueError, match="two heads"):
        Score(answers=["yes", "no"], head="pool")
