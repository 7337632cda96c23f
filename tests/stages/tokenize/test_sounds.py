"""Rows with sounds: the ids of the processor at every length, and what is refused."""

import base64
import struct
from pathlib import Path
from typing import Any

import media_models
import numpy as np
import pytest
import tiny_audio

from postmill.io.errors import ArtifactError
from postmill.io.ledger import read_ledger
from postmill.io.manifest import load_artifact
from postmill.io.schemas import TOKENS_V1, with_media
from postmill.io.table import TableReader
from postmill.stages.runner import Options, run_stage
from postmill.stages.tokenize.config import STAGE, Tokenize


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("hears")
    processor = tiny_audio.processor()
    processor.save_pretrained(folder)
    return folder, processor


def tokenize(out: Path, data: Path, model: Path, **config: Any) -> list[dict[str, Any]]:
    run_stage(STAGE, Tokenize(**config), {"data": [str(data)], "model": [str(model)]}, out, Options())
    table = TableReader(out / "tokens.arrow", with_media(TOKENS_V1))
    return [row for batch in table for row in batch.to_pylist()]


def row(texts: list[str], files: list[str]) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "he.\nA"}
    return {"messages": [{"role": "user", "content": "<audio>".join(texts)}, answer], "audios": files}


def own_ids(processor: Any, texts: list[str], sounds: list[Any]) -> list[int]:
    parts: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        parts += [{"type": "audio"}] if index else []
        parts += [{"type": "text", "text": text}] if text else []
    answer = {"role": "assistant", "content": [{"type": "text", "text": "he.\nA"}]}
    text = processor.apply_chat_template([{"role": "user", "content": parts}, answer], tokenize=False)
    heard = [sound.astype(np.float32) / 32768 for sound in sounds]
    return list(processor(text=[text], audio=heard, sampling_rate=16000)["input_ids"][0])


def test_ids_are_the_processors_at_every_length(model: tuple[Path, Any], tmp_path: Path) -> None:
    """Every length around the borders of windows, and some between; two sounds in every third row."""
    folder, processor = model
    most = 16000 * tiny_audio.SECONDS
    lengths = [*range(321, 2000, 53), *range(640 * 7 - 2, 640 * 7 + 3), *range(160 * 9 - 1, 160 * 9 + 2)]
    lengths += [most - 641, most - 1, most]
    rows, expected = [], []
    for number, length in enumerate(lengths):
        texts = ["", "what?"] if number % 3 else ["he saw\n", " in.\n", "\n\n"]
        counts = [length] if number % 3 else [length, lengths[-1 - number]]
        sounds = [tiny_audio.samples(count) for count in counts]
        for count in counts:
            tiny_audio.save_sound(tmp_path / f"{count}.wav", count)
        rows.append(row(texts, [f"{count}.wav" for count in counts]))
        expected.append(own_ids(processor, texts, sounds))
    found = tokenize(tmp_path / "out", media_models.write_lines(tmp_path / "rows.jsonl", rows), folder)
    assert [each["input_ids"] for each in found] == expected
    feature = processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    for each in found:
        places = [n for n, token in enumerate(each["input_ids"]) if token == feature]
        spans = [n for item in each["media"] for n in range(item["start"], item["end"])]
        assert places == spans
        assert all(item["end"] - item["start"] == item["features"] for item in each["media"])
        assert not any(s["start"] <= n < s["end"] for s in each["spans"] for n in places)


def test_a_sound_at_another_rate_counts_as_it_is_heard(model: tuple[Path, Any], tmp_path: Path) -> None:
    folder, processor = model
    rates = [8000, 11025, 22050, 44100, 48000]
    for rate in rates:
        tiny_audio.save_sound(tmp_path / f"{rate}.wav", 5000, rate=rate)
    rows = [row(["", "?"], [f"{rate}.wav"]) for rate in rates]
    found = tokenize(tmp_path / "out", media_models.write_lines(tmp_path / "rows.jsonl", rows), folder)
    for rate, each in zip(rates, found, strict=True):
        heard = np.zeros(-(-5000 * 16000 // rate), "<i2")
        assert each["input_ids"] == own_ids(processor, ["", "?"], [heard])
        assert (each["media"][0]["kind"], each["media"][0]["rate"], each["media"][0]["width"]) == ("audio", rate, 5000)


def test_parts_bring_sounds_in_every_manner(model: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = model
    data = tiny_audio.wav_bytes(tiny_audio.samples(4000))
    (tmp_path / "a.wav").write_bytes(data)
    text = base64.b64encode(data).decode()
    parts = [
        {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{text}"}},
        {"type": "audio", "audio": "a.wav"},
        {"type": "audio", "path": "a.wav"},
    ]
    answer = {"role": "assistant", "content": "A"}
    rows = [
        {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}, answer]} for part in parts
    ]
    rows.append({"query": "<audio>?", "response": "A", "audio": "a.wav"})
    found = tokenize(tmp_path / "out", media_models.write_lines(tmp_path / "rows.jsonl", rows), folder)
    assert len({tuple(each["input_ids"]) for each in found}) == 1
    assert len({each["media"][0]["digest"] for each in found}) == 1
    assert [each["media"][0]["content"] is None for each in found] == [False, False, True, True, True]


def bad_sounds() -> dict[str, tuple[bytes, str]]:
    """File -> its bytes and the reason in the ledger."""
    good = tiny_audio.wav_bytes(tiny_audio.samples(4000))
    alaw = good[:20] + struct.pack("<H", 6) + good[22:]
    endless = good[:40] + b"\xff\xff\xff\xff" + good[44:]
    return {
        "empty.wav": (b"", "media_empty"),
        "none.wav": (tiny_audio.wav_bytes(tiny_audio.samples(0)), "media_empty"),
        "text.wav": (b"hello, I am no sound", "media_broken"),
        "picture.wav": (media_models.picture_bytes(8, 8), "media_broken"),
        "half.wav": (good[: len(good) // 2], "media_truncated"),
        "header.wav": (good[:30], "media_truncated"),
        "alaw.wav": (alaw, "media_format"),
        "endless.wav": (endless, "media_format"),
        "channels.wav": (good[:22] + b"\0\0" + good[24:], "media_broken"),
        "rate.wav": (good[:24] + b"\0\0\0\0" + good[28:], "media_broken"),
        "a.flac": (b"fLaC" + bytes(40), "media_format"),
        "a.mp3": (b"ID3\x04" + bytes(40), "media_format"),
        "b.mp3": (b"\xff\xfb\x90\x00" + bytes(40), "media_format"),
        "a.ogg": (b"OggS" + bytes(40), "media_format"),
        "a.m4a": (b"\0\0\0\x20ftypM4A " + bytes(40), "media_format"),
        "short.wav": (tiny_audio.wav_bytes(tiny_audio.samples(160)), "media_too_short"),
        "long.wav": (tiny_audio.wav_bytes(tiny_audio.samples(32001)), "media_too_long"),
    }


def test_bad_sounds_are_lines_of_the_ledger(model: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = model
    files = bad_sounds()
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    tiny_audio.save_sound(tmp_path / "good.wav", 4000)
    wanted = [(name, reason) for name, (_, reason) in files.items()]
    wanted += [("gone.wav", "media_missing"), ("/etc/passwd", "media_refused"), ("https://a.b/c.wav", "media_refused")]
    rows = [row(["", "?"], [name]) for name, _ in wanted]
    rows += [row(["", "?"], ["good.wav", "good.wav"]), row(["<|AUDIO|>", "?"], ["good.wav"])]
    reasons = [reason for _, reason in wanted] + ["media_tags", "media_token_in_text"]
    good = [row(["", "?"], ["good.wav"])] * (len(rows) + 1)
    data = media_models.write_lines(tmp_path / "rows.jsonl", rows + good)
    found = tokenize(tmp_path / "out", data, folder, on_bad_row="skip")
    assert len(found) == len(good)
    assert [line["reason"] for line in read_ledger(tmp_path / "out").to_pylist()] == reasons
    counts = load_artifact(tmp_path / "out").manifest.counts
    assert counts is not None and counts.is_balanced()


def test_models_that_hear_nothing_say_so(tmp_path: Path) -> None:
    media_models.save_processor(tmp_path / "sees", "llava")
    tiny_audio.save_sound(tmp_path / "a.wav", 4000)
    data = media_models.write_lines(tmp_path / "rows.jsonl", [row(["", "?"], ["a.wav"])])
    with pytest.raises(ArtifactError, match="the row has sounds and the model reads none"):
        tokenize(tmp_path / "out", data, tmp_path / "sees")
