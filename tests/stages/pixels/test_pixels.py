"""What `pixels` keeps is what the processor makes, bit for bit, and training on it is training on files."""

from pathlib import Path
from typing import Any

import media_models
import numpy as np
import pytest
import tiny_audio
import tiny_vlm
import torch

from postmill.io import pixels as kept
from postmill.io.errors import ArtifactError
from postmill.io.manifest import load_artifact
from postmill.io.media import media_in
from postmill.io.pixels import PIXELS, PixelsReader, Shading
from postmill.stages.options import make
from postmill.stages.pixels.config import STAGE, Pixels
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.media import pixels
from postmill.stages.tokenize.config import STAGE as TOKENIZE
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.train.config import STAGE as TRAIN
from postmill.stages.train.config import Train

pytest.importorskip("torchvision")
pytest.importorskip("num2words")


def make_pixels(tokens: Path, model: Path, out: Path, threads: int = 1) -> Path:
    run_stage(STAGE, Pixels(), {"tokens": [str(tokens)], "model": [str(model)]}, out, Options(threads=threads))
    return out


def tokenized(folder: Path, data: Path, name: str = "tokens") -> Path:
    inputs = {"data": [str(data)], "model": [str(folder / "model")]}
    run_stage(TOKENIZE, Tokenize(), inputs, folder / name, Options())
    return folder / name


def is_same(one: Any, other: torch.Tensor) -> bool:
    """Bit for bit."""
    values = other.numpy()
    return one.dtype == values.dtype and one.shape == values.shape and one.tobytes() == values.tobytes()


@pytest.mark.parametrize("name", tiny_vlm.MODELS)
def test_tensors_are_those_of_the_processor(name: str, tmp_path: Path) -> None:
    tiny_vlm.write_model(tmp_path / "model", name)
    tokens = tokenized(tmp_path, tiny_vlm.write_rows(tmp_path))
    out = make_pixels(tokens, tmp_path / "model", tmp_path / "pixels", threads=3)
    reader, maker = PixelsReader([out]), pixels.Pixels(tmp_path / "model")
    media = {medium.digest: medium for medium in media_in(load_artifact(tokens))}
    assert len(reader) == len(media) > 4
    for medium in media.values():
        wanted, found = maker.processed(medium), reader.tensors(medium)
        assert list(found) == list(wanted)
        assert all(is_same(found[key], wanted[key]) for key in wanted)
    # shades are a byte where processors have four, and eight where each picture stands twice
    counts = load_artifact(out).manifest
    share = (out / PIXELS).stat().st_size / counts.metrics["tensor_bytes"]
    assert share < (0.2 if name.startswith("qwen") else 0.35)
    assert counts.metrics["made"] == {"image": len(media)}
    again = make_pixels(tokens, tmp_path / "model", tmp_path / "again", threads=1)
    assert (again / PIXELS).read_bytes() == (out / PIXELS).read_bytes()


def test_sounds_are_kept_as_they_are(tmp_path: Path) -> None:
    tiny_audio.write_model(tmp_path / "model")
    rows = []
    for number in range(3):
        tiny_audio.save_sound(tmp_path / f"{number}.wav", 9000 + 5000 * number, seed=number)
        rows.append({"query": "<audio>what?", "response": "a tone", "audios": [f"{number}.wav"]})
    tokens = tokenized(tmp_path, media_models.write_lines(tmp_path / "rows.jsonl", rows))
    reader = PixelsReader([make_pixels(tokens, tmp_path / "model", tmp_path / "pixels")])
    maker = pixels.Pixels(tmp_path / "model")
    for medium in media_in(load_artifact(tokens)):
        wanted, found = maker.processed(medium), reader.tensors(medium)
        assert all(is_same(found[key], wanted[key]) for key in wanted) and "input_features" in found


SHADING = Shading(1 / 255, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 2)


def patches(num: int = 5, *, frames: int = 2) -> Any:
    """Numbers that a processor makes of shades, [N, 3 * frames * 16]."""
    rng = np.random.default_rng(num)
    shades = np.repeat(rng.integers(0, 256, (num, 3, 1, 16)), frames, 2).astype(np.float32) * np.float32(1 / 255)
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (SHADING.mean_C, SHADING.std_C))
    return ((shades - mean) / std).astype(np.float32).reshape(num, -1)


def test_what_shades_do_not_give_back_is_kept_whole() -> None:
    good = patches()
    assert kept.encode(good, SHADING)["frames"] == 2
    between, other_frame, negative_zero, nan = (good.copy() for _ in range(4))
    between[1, 7] += 1e-4
    other_frame[2, 16:32] = good[3, 16:32]
    negative_zero[0, :16], negative_zero[0, 16:32] = 0.0, -0.0
    nan[0, 0] = np.nan
    for tensor in (between, other_frame, negative_zero, nan, good[:, :-1], good[:0], good.astype(np.float64)):
        member = kept.encode(tensor, SHADING)
        assert member["frames"] == 0
        assert kept.decode(member).tobytes() == np.ascontiguousarray(tensor).tobytes()
    mask = np.ones((2, 3, 8, 8), np.int64)
    assert len(kept.encode(mask, SHADING)["data"]) == 8
    assert kept.decode(kept.encode(mask, SHADING)).tobytes() == mask.tobytes()
    mask[1, 2, 3, 4] = 0
    assert kept.decode(kept.encode(mask, SHADING)).tobytes() == mask.tobytes()
    tiles = np.ascontiguousarray(patches(4, frames=1).reshape(2, 2, 3, 4, 4))
    member = kept.encode(tiles, SHADING)
    assert member["frames"] == 1 and kept.decode(member).tobytes() == tiles.tobytes()


def train(folder: Path, out: Path, *stored: Path) -> Path:
    config = make(Train, tuner="full", steps=3, lr=1e-3, bins_per_step=1)
    inputs = {
        "packed": [str(folder / "packed")],
        "model": [str(folder / "model")],
        "pixels": [str(path) for path in stored],
    }
    run_stage(TRAIN, config, inputs, out, Options(threads=1))
    return out


def test_training_is_the_same_without_the_files(tmp_path: Path) -> None:
    tiny_vlm.write_model(tmp_path / "model", "qwen2_5_vl")
    tiny_vlm.write_packed(tmp_path / "packed", tmp_path / "model", tiny_vlm.write_rows(tmp_path))
    out = make_pixels(tmp_path / "packed", tmp_path / "model", tmp_path / "pixels")
    files = train(tmp_path, tmp_path / "of-files")
    for path in tmp_path.glob("p*-*.png"):
        path.unlink()
    stored = train(tmp_path, tmp_path / "stored", out)
    weights = [(run / "model.safetensors").read_bytes() for run in (files, stored)]
    assert weights[0] == weights[1]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tiny_vlm.write_model(tmp_path / "model", "qwen2_5_vl")
    data = tiny_vlm.write_rows(tmp_path)
    tiny_vlm.write_packed(tmp_path / "packed", tmp_path / "model", data)
    fewer = media_models.write_lines(
        tmp_path / "fewer.jsonl", [{"query": "<image>?", "response": "a", "images": ["p0-0.png"]}]
    )
    out = make_pixels(tokenized(tmp_path, fewer), tmp_path / "model", tmp_path / "pixels")
    with pytest.raises(ArtifactError, match="is not among the 1 pictures of --pixels") as refused:
        train(tmp_path, tmp_path / "run", out)
    assert refused.value.code == 78
    tiny_vlm.write_model(tmp_path / "model", "qwen3_vl")
    other = make_pixels(tmp_path / "tokens", tmp_path / "model", tmp_path / "other")
    tiny_vlm.write_model(tmp_path / "model", "qwen2_5_vl")
    with pytest.raises(ArtifactError, match="its processor is another than that of --pixels") as refused:
        train(tmp_path, tmp_path / "run", other)
    assert refused.value.code == 78
    text = media_models.write_lines(tmp_path / "text.jsonl", [{"query": "no picture", "response": "a"}])
    with pytest.raises(ArtifactError, match="there is nothing to make"):
        make_pixels(tokenized(tmp_path, text, "text"), tmp_path / "model", tmp_path / "none")
