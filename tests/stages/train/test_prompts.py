"""Prompt methods: vectors before every row of a bin, as PEFT puts them before a row alone."""

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from tuner_laws import config, given, load, losses, trained  # noqa: E402

from postmill.io.errors import ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.stages.merge.config import STAGE as MERGE  # noqa: E402
from postmill.stages.merge.config import Merge  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.train.config import STAGE  # noqa: E402

METHODS = {
    "prompt-tuning": {"length": 5},
    "p-tuning": {"length": 5, "hidden_size": 16},
    "prefix-tuning": {"length": 5},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("prompts")
    base = tiny_model.write_model(folder / "base")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(16, seed=3))
    tiny_model.write_packed(folder / "valid", base, tiny_model.make_rows(4, seed=9))
    return folder


def loss_of(model, packed):
    """Weighted loss of each row alone, from the logits that a PEFT model has for the row's own tokens."""
    reader, total, count = PackedReader(packed), 0.0, 0
    for number in range(len(reader)):
        found = reader.bin(number)
        for start, end in zip(found.cu_seqlens[:-1], found.cu_seqlens[1:], strict=True):
            ids = torch.from_numpy(found.input_ids[start:end]).long()
            weights = torch.from_numpy(found.weights[start:end])
            with torch.no_grad():
                logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits
            logp = logits[0, -len(ids) : -1].log_softmax(-1)
            total += float((-weights[1:] * logp.gather(-1, ids[1:, None])[:, 0]).double().sum())
            count += int((weights[1:] != 0).sum())
    return total / count


@pytest.mark.parametrize("name", METHODS)
def test_trains_resumes_and_loads_in_peft(world, tmp_path, name):
    run = trained(world, config(name, **METHODS[name]), tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    base = load(world / "base")
    assert abs(loss_of(base, world / "valid") - valid) > 1e-3
    tuned = peft.PeftModel.from_pretrained(base, str(run)).eval()
    assert loss_of(tuned, world / "valid") == pytest.approx(valid, abs=2e-6)
    with pytest.raises(ConfigError, match="merge"):
        ports = {"parts": [str(run)], "model": [str(world / "base")]}
        run_stage(MERGE, Merge(parity="off"), ports, tmp_path / "merged", Options(threads=1))
    with pytest.raises(ConfigError, match="is not computed here: it puts vectors before each prompt"):
        ports = {"rows": [str(world / "valid")], "model": [str(world / "base")], "adapter": [str(run)]}
        run_stage(SCORE, Score(), ports, tmp_path / "scores", Options(threads=1))


def test_another_run_goes_on_from_its_vectors(world, tmp_path):
    first = tmp_path / "first"
    cfg = config("prompt-tuning", length=5)
    run_stage(STAGE, cfg, given(world), first, Options(threads=1))
    again = given(world) | {"from": [str(first)]}
    run_stage(STAGE, cfg, again, tmp_path / "second", Options(threads=1))
    assert losses(tmp_path / "second")[0] < losses(first)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neftune_alpha": 5.0}, "--neftune-alpha: not with vectors"),
        ({"shard": "fsdp"}, "its vectors stand before whole rows"),
    ],
)
def test_what_does_not_fit_is_refused(world, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run_stage(STAGE, config("prefix-tuning", **options), given(world), tmp_path / "run", Options(threads=1))
