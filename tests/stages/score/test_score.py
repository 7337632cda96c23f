"""Score on a tiny model: numbers are the model's own on each row alone, parts survive a stop, readers join them."""

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch", reason="scoring needs torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import tiny_model  # noqa: E402

from postmill.io.errors import ArtifactError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.schemas import SCORES_V1  # noqa: E402
from postmill.io.scores import SCORES, ScoresReader  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score import run as score_run  # noqa: E402
from postmill.stages.score.config import STAGE, Score  # noqa: E402

NUM_ROWS = 23


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    base = tiny_model.write_model(folder / "base")
    rows = tiny_model.make_rows(NUM_ROWS)
    tiny_model.write_packed(folder / "packed", base, rows)
    return folder


def score(world, out, *, model="base", rows="packed", adapter=(), **options):
    given = {"rows": [str(world / rows)], "model": [str(world / model)], "adapter": [str(world / a) for a in adapter]}
    run_stage(STAGE, make(Score, **options), given, out, Options(threads=1))
    return out


def table(path):
    return pa.Table.from_batches(list(TableReader(path / SCORES, SCORES_V1))).to_pylist()


def alone(world, model, temperature=1.0):
    """Row ordinal -> log-probs [T, V] of the row read alone."""
    reader = PackedReader(world / "packed")
    found = {}
    for index in range(len(reader)):
        packed = reader.bin(index)
        for row, start, end in zip(packed.rows.tolist(), packed.cu_seqlens, packed.cu_seqlens[1:], strict=False):
            ids = torch.from_numpy(packed.input_ids[start:end].astype(np.int64))
            with torch.no_grad():
                logits = model(ids[None]).logits[0].double()
            found[row] = (ids, (logits / temperature).log_softmax(-1))
    return found


def test_numbers_are_those_of_the_model_reading_each_row_alone(world, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32).eval()
    options = {"where": "all", "entropy": True, "collision": True, "temperature": 0.7, "bin_tokens": 40}
    lines = table(score(world, tmp_path / "scores", **options))
    for row, (ids, logp_TV) in alone(world, model, 0.7).items():
        line, before = lines[row], logp_TV[:-1]
        assert line["start"] == 1
        assert line["logp"] == pytest.approx(before.gather(1, ids[1:, None])[:, 0].tolist(), abs=2e-5)
        assert line["entropy"] == pytest.approx((-before.exp() * before).sum(1).tolist(), abs=2e-5)
        assert line["collision"] == pytest.approx((2 * before).logsumexp(1).tolist(), abs=2e-5)


def test_only_trained_tokens_are_scored_by_default_and_readers_join_them(world, tmp_path):
    out = score(world, tmp_path / "scores")
    reader, scores = PackedReader(world / "packed"), ScoresReader(out)
    scores.check(reader)
    total, count = 0.0, 0
    for index in range(len(reader)):
        packed = reader.bin(index)
        lengths = np.diff(packed.cu_seqlens)
        logp = scores.tokens(packed.rows, lengths, "logp")
        assert not np.isnan(logp[packed.weights != 0]).any()
        assert np.isnan(logp[packed.cu_seqlens[:-1]]).all()
        total, count = total + np.nansum(logp), count + (~np.isnan(logp)).sum()
    metrics = load_artifact(out, ("scores",)).manifest.metrics
    assert metrics["tokens"] == count
    assert metrics["mean_logp"] == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(ArtifactError, match="has no entropy; score again with --entropy"):
        scores.tokens(np.array([0]), np.array([30]), "entropy")


def test_an_adapter_scores_as_peft_computes_it(world, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(0)
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.5)
    adapted.save_pretrained(world / "adapter")
    lines = table(score(world, tmp_path / "scores", adapter=["adapter"], where="all"))
    plain = table(score(world, tmp_path / "plain", where="all"))
    assert lines[0]["logp"] != pytest.approx(plain[0]["logp"], abs=1e-3)
    for row, (ids, logp_TV) in alone(world, adapted.eval()).items():
        expected = logp_TV[:-1].gather(1, ids[1:, None])[:, 0].tolist()
        assert lines[row]["logp"] == pytest.approx(expected, abs=2e-5)


def test_a_part_that_is_done_is_not_computed_again(world, tmp_path, monkeypatch):
    monkeypatch.setattr(score_run, "PART_ROWS", 5)
    whole = score(world, tmp_path / "whole")
    calls = []
    compute = score_run._score

    def stop_after_two(cfg, forward, reading, part):
        if len(calls) == 2:
            raise KeyboardInterrupt  # as a kill: nothing is tidied up
        calls.append(len(part))
        return compute(cfg, forward, reading, part)

    monkeypatch.setattr(score_run, "_score", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        score(world, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    monkeypatch.setattr(score_run, "_score", lambda *args: calls.append(len(args[3])) or compute(*args))
    score(world, tmp_path / "again")
    assert calls == [5, 5, 5, 5, 3]
    assert (tmp_path / "again" / SCORES).read_bytes() == (whole / SCORES).read_bytes()
    assert not (tmp_path / "again.checkpoints").exists()


def test_a_row_that_the_model_cannot_read_is_named(world, tmp_path):
    short = tiny_model.write_model(tmp_path / "short", max_position_embeddings=8)
    with pytest.raises((ArtifactError, StageError), match=r"row \d+: \d+ tokens, short reads 8"):
        score(world, tmp_path / "scores", model=short)
