"""Sounds in requests, with the official client: answers are those of transformers' generation."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

httpx2 = pytest.importorskip("httpx2")
openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

import tiny_audio  # noqa: E402
import torch  # noqa: E402
from http_server import Served, serving  # noqa: E402

from postmill.stages.shared.media.sound import decode_sound, resample  # noqa: E402


class World:
    """A server, and what transformers would answer."""

    def __init__(self, folder: Path, served: Served, processor: Any) -> None:
        self.folder, self.url, self.processor = folder, served.url, processor
        self.client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)

    def truth(self, data: bytes) -> tuple[str, int]:
        """The text of the greedy answer to a sound and a question, and the length of the prompt."""
        import transformers

        net = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()
        content = [{"type": "audio"}, {"type": "text", "text": "what is said?"}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        samples, rate = decode_sound(data, "sound")
        heard = resample(samples, rate, 16000)
        made = self.processor(text=[text], audio=[heard], sampling_rate=16000, return_tensors="pt")
        length = made["input_ids"].shape[1]
        with torch.no_grad():
            ids = net.generate(**made, max_new_tokens=6, do_sample=False, eos_token_id=-1)[0, length:].tolist()
        end = self.processor.tokenizer.eos_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True), length

    def post(self, part: Any) -> Any:
        body = {"model": "model", "messages": [{"role": "user", "content": [part]}], "max_tokens": 2}
        return httpx2.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("serve-sounds") / "model"
    processor = tiny_audio.write_model(folder)
    with serving(folder, max_new_tokens=50) as served:
        yield World(folder, served, processor)


def part(data: bytes, form: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def packed(form: str, length: int = 12000, rate: int = 22050) -> bytes:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    soundfile.write(out, tiny_audio.samples(length).astype(np.float32) / 32768, rate, format=form)
    return out.getvalue()


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "ogg"])
def test_openai_client_sends_sounds(world: World, form: str) -> None:
    data = tiny_audio.wav_bytes(tiny_audio.samples(12000)) if form == "wav" else packed(form)
    text, length = world.truth(data)
    content = [part(data, form), {"type": "text", "text": "what is said?"}]
    found = world.client.chat.completions.create(
        model="model", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=6
    )
    assert found.choices[0].message.content == text
    assert found.usage.prompt_tokens == length


def test_what_is_no_sound_is_a_400_that_names_its_part(world: World) -> None:
    good = tiny_audio.wav_bytes(tiny_audio.samples(4000))
    long = tiny_audio.wav_bytes(tiny_audio.samples(16000 * tiny_audio.SECONDS + 1))
    bad: list[tuple[Any, str]] = [
        (part(b"hello"), "no sound in WAV"),
        (part(b""), "no sound in WAV"),
        (part(good[:30]), "the WAV ends too early"),
        (part(long), "the model hears 2 s"),
        ({"type": "input_audio", "input_audio": {"data": "***", "format": "wav"}}, "not base64"),
        ({"type": "input_audio", "input_audio": {"data": 7}}, "expected input_audio with data"),
        ({"type": "input_audio"}, "expected input_audio with data"),
        ({"type": "input_audio", "input_audio": "https://a.b/c.wav"}, "expected input_audio with data"),
    ]
    for sent, message in bad:
        answer = world.post(sent)
        assert answer.status_code == 400, (sent, answer.text)
        error = answer.json()["error"]
        assert message in error["message"]
        assert error["param"].startswith("messages.0.content.0")


def test_a_packed_sound_is_not_unpacked_without_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from postmill.io.errors import ArtifactError
    from postmill.stages.shared.media import sound

    silence = packed("flac", 64000)
    monkeypatch.setattr(sound, "MOST_SAMPLES", 63999)
    with pytest.raises(ArtifactError, match="has 64000 samples of 1 channels, the most is 63999"):
        decode_sound(silence, "a.flac")
    with pytest.raises(ArtifactError, match="cannot be decoded"):
        decode_sound(b"fLaC" + bytes(40), "a.flac")
