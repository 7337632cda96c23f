"""Rows with pictures in training: packed they are what they are alone, and the whole model is what transformers has."""

import json
from pathlib import Path
from typing import Any

import media_models
import numpy as np
import pytest
import tiny_vlm
import torch
from media_case import LOGP, TOLERANCE, Case, largest, plain_model, trained, weights_of

from postmill.io.errors import ConfigError
from postmill.io.packed import PackedReader
from postmill.stages.shared import attention
from postmill.stages.shared.forward import Forward

pytest.importorskip("torchvision")
pytest.importorskip("num2words")


@pytest.fixture(scope="module", params=tiny_vlm.MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp(request.param), request.param)


def own_logp(case: Case, row: int, **more: Any) -> torch.Tensor:
    """A row as transformers computes it: ids and pixels by the processor, attention by torch."""
    from PIL import Image

    net = plain_model(case.folder)
    rows = np.array([row])
    ids = torch.from_numpy(case.reader.token_rows.lay(rows).input_ids.astype(np.int64))[None]
    pictures = case.reader.token_rows.pictures(rows)[0]
    inputs: dict[str, Any] = {}
    if pictures:
        images = [Image.open(picture.place).convert("RGB") for picture in pictures]
        nested = [images] if case.name in ("idefics3", "smolvlm") else images
        # the size of a cell, which Pixtral's processor tells its image processor
        known = {"patch_size": {"height": 28, "width": 28}} if case.name == "pixtral" else {}
        inputs = dict(case.processor.image_processor(images=nested, return_tensors="pt", **known))
        for name in ("num_patches", "num_crops", "rows", "cols"):
            inputs.pop(name, None)
        if case.name == "llava_onevision":
            inputs["batch_num_images"] = torch.tensor([len(pictures)])
        if case.name == "llama4":
            inputs["pixel_values"] = inputs["pixel_values"].float()
    tok = case.processor.tokenizer
    feature = tok.image_token_id if case.name == "gemma3" else case.processor.image_token_id
    pads = (ids == feature).long()
    if case.name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v") and pictures:
        inputs["mm_token_type_ids"] = pads
    if case.name == "qwen2_5_omni":
        inputs["attention_mask"] = torch.ones_like(ids)
    if case.name == "gemma3":
        inputs["token_type_ids"] = pads
    if case.name == "paligemma":
        answer = case.reader.token_rows.answers(rows)[0]
        inputs["token_type_ids"] = (torch.arange(ids.shape[1]) >= answer).long()[None]
    with torch.no_grad():
        logits = net(input_ids=ids, use_cache=False, **inputs, **more).logits[0]
    return logits[:-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)


def test_rows_are_what_transformers_makes_of_them(case: Case) -> None:
    rows = list(range(case.reader.num_rows))
    alone = [case.logp(case.batch([row]))[0] for row in rows]
    assert largest(alone, [own_logp(case, row) for row in rows]) < TOLERANCE


def test_packed_rows_are_what_they_are_alone(case: Case) -> None:
    rows = list(range(case.reader.num_rows))
    alone = [case.logp(case.batch([row]))[0] for row in rows]
    for order in (rows, rows[::-1]):
        assert largest(case.logp(case.batch(order)), [alone[row] for row in order]) < TOLERANCE


def test_the_comparison_would_see_a_fault(case: Case) -> None:
    """Two pictures exchanged, positions that go on, blocks left out: each changes log-probabilities by 1e-3 or more."""
    rows = [row for row in range(case.reader.num_rows) if case.reader.token_rows.pictures(np.array([row]))[0]]
    batch = case.batch(rows)
    right = case.logp(batch)
    media = batch.media
    assert media is not None
    seen = media.seen["image"]
    swapped = list(seen.which_N)
    first, second = next(
        (a, b) for a in range(len(swapped)) for b in range(a) if seen.features_N[a] == seen.features_N[b]
    )
    swapped[first], swapped[second] = swapped[second], swapped[first]
    wrong = [media._replace(seen={"image": seen._replace(which_N=tuple(swapped))})]
    if media.position_ids_31T is not None:
        wrong.append(media._replace(position_ids_31T=batch.position_ids_1T.expand(3, 1, -1)))
    if media.blocks is not None:
        wrong.append(media._replace(blocks=None))
    for one in wrong:
        assert largest(case.logp(batch._replace(media=one)), right) > 1e-3
    merged = batch._replace(row_starts=(0, batch.row_starts[-1]))
    with torch.no_grad():
        leaked = case.forward(merged, LOGP).logp_T
    lengths = np.diff(batch.row_starts).tolist()
    assert largest([piece[:-1] for piece in leaked.split(lengths)][1:], right[1:]) > 1e-3


def test_a_picture_that_occurs_twice_is_seen_once(case: Case) -> None:
    batch, one = case.batch([0, 0, 0]), case.batch([0])
    assert batch.media is not None and one.media is not None
    thrice, once = batch.media.seen["image"].inputs, one.media.seen["image"].inputs
    assert {n: t.shape for n, t in thrice.items()} == {n: t.shape for n, t in once.items()}
    assert largest(case.logp(batch), case.logp(one) * 3) < TOLERANCE


def logits(folder: Path, case: Case) -> torch.Tensor:
    """Of the first row, by transformers alone."""
    copy = Case.__new__(Case)
    copy.__dict__ = case.__dict__ | {"folder": folder}
    return own_logp(copy, 0)


def test_demonstrations_are_seen_with_their_pictures(case: Case, tmp_path: Path) -> None:
    """A step of all rows, half of its loss from the same rows as demonstrations, is a step of all rows."""
    bins, lines = len(case.reader), []
    for name, ports in (("alone", []), ("both", ["demonstrations"])):
        options = {"steps": 1, "bins_per_step": bins, "demonstration_bins": bins, "mu": 0.5}
        out = trained(case, tmp_path / name, ports, tuner="full", **options)
        lines.append(json.loads((out / "metrics.jsonl").read_text()))
    alone, both = lines
    assert both["demonstrations"] == pytest.approx(alone["loss"], rel=1e-5)
    assert both["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert both["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("part", ["vision", "projector", "language"])
def test_a_part_can_be_frozen(case: Case, part: str, tmp_path: Path) -> None:
    """The saved model loads in transformers under its own names, and what was frozen is as it was."""
    from postmill.stages.shared.media.groups import group_of

    if case.name not in ("qwen2_5_vl", "qwen3_vl", "llava", "gemma3", "pixtral", "llama4", "glm4v"):
        pytest.skip("seven layouts of names are enough")
    out = trained(case, tmp_path / "run", tuner="full", freeze=[part], ports=["valid"] if part == "vision" else [])
    before, after = weights_of(case.folder), weights_of(out)
    parts = group_of(case.net)
    assert before.keys() == after.keys()
    changed = {parts[name] for name in before if name in parts and not torch.equal(before[name], after[name])}
    assert changed == {"vision", "projector", "language"} - {part}


def test_an_adapter_merges_into_a_model_that_loads(case: Case, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForMultimodalLM

    from postmill.stages.merge.config import STAGE, Merge
    from postmill.stages.runner import Options, run_stage

    if case.name not in ("qwen2_5_vl", "llava", "gemma3", "smolvlm", "pixtral", "llama4", "glm4v"):
        pytest.skip("seven layouts of names are enough")
    targets = ["vision", "language"] if case.name == "llava" else ["all-linear"]
    adapter = trained(case, tmp_path / "adapter", tuner="lora", rank=4, targets=targets)
    merged = tmp_path / "merged"
    run_stage(STAGE, Merge(), {"parts": [str(adapter)], "model": [str(case.folder)]}, merged, Options())
    base = AutoModelForMultimodalLM.from_pretrained(case.folder, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()
    ours = weights_of(merged)
    assert ours.keys() == peft.keys()
    assert max(float((ours[name] - peft[name]).abs().max()) for name in ours) < 1e-6
    untouched = weights_of(case.folder)
    assert any(not torch.equal(ours[name], untouched[name]) for name in ours)


def test_score_sees_the_pictures(case: Case, tmp_path: Path) -> None:
    from postmill.io.schemas import SCORES_V1
    from postmill.io.table import TableReader
    from postmill.stages.runner import Options, run_stage
    from postmill.stages.score.config import STAGE, Score

    if case.name not in ("qwen3_vl", "paligemma"):
        pytest.skip("two are enough")
    out = tmp_path / "scores"
    given = {"rows": [str(case.packed)], "model": [str(case.folder)]}
    run_stage(STAGE, Score(where="all", loss_kernel="reference"), given, out, Options())
    scores = [row for batch in TableReader(out / "scores.arrow", SCORES_V1) for row in batch.to_pylist()]
    assert len(scores) == case.reader.num_rows
    for row, score in enumerate(scores):
        [alone] = case.logp(case.batch([row]))
        assert largest([torch.tensor(score["logp"])], [alone]) < TOLERANCE


def test_a_bin_costs_what_its_pictures_cost(case: Case) -> None:
    if case.name != "qwen2_5_vl":
        pytest.skip("one is enough")
    rows, starts = case.reader.layout()
    patches = [sum(picture.patches for picture in row) for row in case.reader.token_rows.pictures(rows)]
    lengths = case.reader.columns(rows, ["length"])["length"].astype(float)
    config = case.reader.artifact.manifest.config
    expected = lengths + lengths**2 / (6 * config["hidden_size"]) + config["patch_cost"] * np.array(patches)
    assert np.allclose(np.add.reduceat(expected, starts[:-1]), case.reader.plan.cost)
    assert sum(patches) > 0


def test_ranks_agree_where_one_has_no_pictures(case: Case, tmp_path: Path) -> None:
    """Two ranks, a bin each, one of text alone: losses and gradients are those of one rank with both bins."""
    import json

    from forks import fork_ranks, wait_code

    from postmill.stages.options import make
    from postmill.stages.runner import Options, run_stage
    from postmill.stages.train.config import STAGE, Train

    if case.name not in ("qwen3_vl", "gemma3"):
        pytest.skip("two are enough: with deepstack, and with blocks")
    rows = [{"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "it " * 40}]}] * 2
    with_pictures = tiny_vlm.write_rows(tmp_path / "data", number=3).read_text()
    lines = media_models.write_lines(tmp_path / "data" / "text.jsonl", rows).read_text()
    (tmp_path / "data" / "rows.jsonl").write_text(lines + with_pictures)
    packed = tiny_vlm.write_packed(tmp_path / "packed", case.folder, tmp_path / "data" / "rows.jsonl", 160)
    reader = PackedReader(packed)
    seen = [any(reader.token_rows.pictures(reader.rows(index))) for index in range(len(reader))]
    assert True in seen and False in seen
    ports = {"packed": [str(packed)], "model": [str(case.folder)]}
    cfg = make(Train, steps=len(reader), bins_per_step=2, lr=1e-3, warmup=0.0, tuner="full")
    run_stage(STAGE, cfg, ports, tmp_path / "one", Options(threads=1))
    assert [wait_code(pid) for pid in fork_ranks([cfg] * 2, ports, tmp_path / "two")] == [0, 0]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for x, y in zip(one, two, strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-4)


def test_a_bin_that_the_layers_do_not_see_whole_is_refused(case: Case) -> None:
    """Llama 4 scales attention by how far a token is from the start of the input, so far from the start of its bin."""
    if case.name != "llama4":
        pytest.skip("others see bins of any length")
    assert attention.most_tokens(case.net.config) == 8191
    forward = Forward(case.net, compute_dtype=torch.float32, backend="reference")
    batch = case.batch([0])
    ids = torch.zeros((1, 8192), dtype=torch.long)
    with pytest.raises(ConfigError, match="pack with --row-tokens 8191"):
        forward(batch._replace(input_ids_1T=ids, row_starts=(0, 8192), media=None), LOGP)
