"""Rows with sounds in training: packed they are what they are alone, and that is what transformers has."""

from pathlib import Path
from typing import Any

import media_models
import numpy as np
import pytest
import tiny_audio
import torch
from media_case import LOGP, TOLERANCE, Rows, largest
from tiny_vlm import write_packed

from postmill.io.errors import ArtifactError
from postmill.stages.shared.media.pixels import Pixels
from postmill.stages.shared.media.sound import decode_wav, resample


def write_rows(folder: Path) -> Path:
    """Rows with one or two sounds, one at another rate, one without any."""
    rows: list[dict[str, Any]] = []
    for index in range(5):
        files = [f"{index}-{number}.wav" for number in range(0 if index == 3 else 1 + index % 2)]
        for number, name in enumerate(files):
            rate = 22050 if index == 2 else 16000
            tiny_audio.save_sound(folder / name, 3000 + 1700 * index + 900 * number, seed=index, rate=rate)
        text = "".join(f"<audio>what is {'in' * number} it?" for number in range(len(files))) or "hello there"
        answer = {"role": "assistant", "content": f"the answer is {index}"}
        rows.append({"messages": [{"role": "user", "content": text}, answer], "audios": files})
    return media_models.write_lines(folder / "rows.jsonl", rows)


class Case(Rows):
    """A tiny model that hears, and its rows."""

    def __init__(self, folder: Path) -> None:
        self.processor = tiny_audio.write_model(folder / "model")
        (folder / "data").mkdir()
        super().__init__(
            folder / "model", write_packed(folder / "packed", folder / "model", write_rows(folder / "data"))
        )

    def own_logp(self, row: int) -> torch.Tensor:
        """The same by transformers' own model and feature extractor."""
        import transformers

        net = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()
        ordinals = np.array([row])
        ids = torch.from_numpy(self.reader.token_rows.lay(ordinals).input_ids.astype(np.int64))[None]
        inputs: dict[str, Any] = {}
        sounds = [decode_wav(s.load(), s.place) for s in self.reader.token_rows.pictures(ordinals)[0]]
        if sounds:
            heard = [resample(values, rate, 16000) for values, rate in sounds]
            extractor = self.processor.feature_extractor
            options = {"sampling_rate": 16000, "return_attention_mask": True, "padding": "max_length"}
            found = extractor(heard, return_tensors="pt", **options)
            inputs = {
                "input_features": found["input_features"],
                "feature_attention_mask": found["attention_mask"],
                "attention_mask": torch.ones_like(ids),
            }
        with torch.no_grad():
            logits = net(input_ids=ids, use_cache=False, **inputs).logits[0]
        return logits[:-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("sounds"))


def test_rows_are_what_transformers_makes_of_them_alone_and_packed(case: Case) -> None:
    rows = list(range(case.reader.num_rows))
    alone = [case.logp(case.batch([row]))[0] for row in rows]
    assert largest(alone, [case.own_logp(row) for row in rows]) < TOLERANCE
    for order in (rows, rows[::-1]):
        assert largest(case.logp(case.batch(order)), [alone[row] for row in order]) < TOLERANCE


def test_the_comparison_would_see_a_fault(case: Case) -> None:
    """Two sounds exchanged, rows that see each other: each changes log-probabilities by 1e-3 or more."""
    batch = case.batch([0, 2, 4])
    assert batch.media is not None
    seen, right = batch.media.seen["audio"], case.logp(batch)
    assert seen.features_N[0] != seen.features_N[1]
    twice = case.batch([0, 0])
    assert twice.media is not None
    assert twice.media.seen["audio"].inputs["input_features"].shape[0] == 1
    assert largest(case.logp(twice), case.logp(case.batch([0])) * 2) < TOLERANCE
    mixed = {name: tensor.flip(0) for name, tensor in seen.inputs.items() if name == "input_features"}
    wrong = batch.media._replace(seen={"audio": seen._replace(inputs=seen.inputs | mixed)})
    assert largest(case.logp(batch._replace(media=wrong)), right) > 1e-3
    merged = batch._replace(row_starts=(0, batch.row_starts[-1]))
    with torch.no_grad():
        leaked = case.forward(merged, LOGP).logp_T
    assert leaked is not None
    pieces = [piece[:-1] for piece in leaked.split(np.diff(batch.row_starts).tolist())]
    assert largest(pieces[1:], right[1:]) > 1e-3


def trained(case: Case, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    import transformers

    from postmill.stages.options import make
    from postmill.stages.runner import Options, run_stage
    from postmill.stages.train.config import STAGE, Train

    cfg = make(Train, **({"steps": 2, "bins_per_step": 1, "lr": 1e-2, "warmup": 0.0, "tuner": "full"} | options))
    run_stage(STAGE, cfg, {"packed": [str(case.packed)], "model": [str(case.folder)]}, out, Options())
    net = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
    return dict(net.state_dict())


@pytest.mark.parametrize("frozen", [["audio", "projector"], ["language"]])
def test_parts_can_be_frozen_and_what_is_saved_loads(case: Case, frozen: list[str], tmp_path: Path) -> None:
    from postmill.stages.shared.media.groups import group_of

    parts = group_of(case.net)
    before = dict(case.net.state_dict())
    after = trained(case, tmp_path / "run", freeze=frozen)
    changed = {parts[name] for name in before if name in parts and not torch.equal(before[name], after[name])}
    assert changed == {"audio", "projector", "language"} - set(frozen)


def test_an_adapter_is_on_the_decoder_alone(case: Case, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from postmill.stages.options import make
    from postmill.stages.runner import Options, run_stage
    from postmill.stages.train.config import STAGE, Train

    cfg = make(Train, steps=1, bins_per_step=1, lr=1e-2, warmup=0.0, tuner="lora", rank=4)
    run_stage(STAGE, cfg, {"packed": [str(case.packed)], "model": [str(case.folder)]}, tmp_path / "lora", Options())
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert names and all("language_model" in name for name in names)


def test_a_sound_that_changed_stops_training(case: Case) -> None:
    [[sound]] = case.reader.token_rows.pictures(np.array([0]))
    file = Path(sound.place)
    before = file.read_bytes()
    try:
        file.write_bytes(tiny_audio.wav_bytes(tiny_audio.samples(3000, seed=3)))
        with pytest.raises(ArtifactError, match="is another sound than when the rows were made"):
            Pixels(case.folder).media([[sound]], torch.zeros(1), [0, 1], [1])
        file.unlink()
        with pytest.raises(ArtifactError, match="a sound of the rows cannot be read") as gone:
            Pixels(case.folder).media([[sound]], torch.zeros(1), [0, 1], [1])
        assert gone.value.code == 66
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("kind", ["u1", "<i2", "i3", "<i4", "<f4", "<f8"])
def test_wav_of_every_form_is_the_mean_of_its_channels(kind: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(-0.9, 0.9, (50, 2))
    bits = 24 if kind == "i3" else np.dtype(kind).itemsize * 8
    scale = 2 ** (bits - 1)
    if kind == "u1":
        data = np.round(values * scale + scale).astype("u1").tobytes()
    elif kind == "i3":
        whole = np.round(values * scale).astype("<i4").reshape(-1)
        data = b"".join(int(value).to_bytes(3, "little", signed=True) for value in whole)
    else:
        data = (np.round(values * scale) if kind[1] == "i" else values).astype(kind).tobytes()
    head = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + (3 if "f" in kind else 1).to_bytes(2, "little") + b"\2\0"
    head += (8000).to_bytes(4, "little") + (8000 * bits // 4).to_bytes(4, "little")
    head += (bits // 4).to_bytes(2, "little") + bits.to_bytes(2, "little")
    found, rate = decode_wav(head + b"junk\1\0\0\0\0\0data" + len(data).to_bytes(4, "little") + data, "x")
    assert rate == 8000
    np.testing.assert_allclose(found, values.mean(axis=1), atol=1.5 / scale + 1e-7)


@pytest.mark.parametrize(("own", "wanted"), [(8000, 16000), (44100, 16000), (48000, 16000), (11025, 16000)])
def test_resampling_keeps_a_tone(own: int, wanted: int) -> None:
    """A tone below both limits is the same tone at the other rate; one above the lower limit is gone."""
    at = np.arange(own // 4) / own
    heard = resample(np.sin(2 * np.pi * 440 * at).astype(np.float32), own, wanted)
    assert len(heard) == -(-len(at) * wanted // own)
    true = np.sin(2 * np.pi * 440 * np.arange(len(heard)) / wanted)
    inner = slice(200, -200)
    assert np.abs(heard[inner] - true[inner]).max() < 5e-3
    if own > wanted:
        high = resample(np.sin(2 * np.pi * 0.45 * own * at).astype(np.float32), own, wanted)
        assert np.abs(high[inner]).max() < 0.05
