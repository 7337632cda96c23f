"""Questions about sounds: answers are those of transformers' own generation."""

from pathlib import Path
from typing import Any

import media_models
import pytest
import tiny_audio
import torch

from postmill.io.errors import ArtifactError
from postmill.io.schemas import EVAL_ITEMS_V1, EVAL_SCORES_V1
from postmill.io.table import TableReader
from postmill.stages.eval.config import STAGE, Eval
from postmill.stages.eval.questions import read_questions
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.media.sound import decode_wav, resample


def ask(model: Path, questions: Path, out: Path) -> list[dict[str, Any]]:
    cfg = Eval(max_new_tokens=5, temperature=0.0, max_errors=1.0)
    run_stage(STAGE, cfg, {"tested": [str(model)], "ask": [str(questions)]}, out, Options())
    return [row for batch in TableReader(out / "items.arrow", EVAL_ITEMS_V1) for row in batch.to_pylist()]


def test_answers_are_those_of_generate(tmp_path: Path) -> None:
    import transformers

    processor = tiny_audio.write_model(tmp_path / "model")
    tiny_audio.save_sound(tmp_path / "a.wav", 9000)
    tiny_audio.save_sound(tmp_path / "b.wav", 14001, seed=1, rate=22050)
    rows: list[dict[str, Any]] = [
        {"question": "<audio>what is said?", "audios": ["a.wav"], "answer": "a b", "score": "wer"},
        {"question": "hello"},
        {"question": "<audio>and<audio>differ?", "audios": ["a.wav", "b.wav"]},
    ]
    found = ask(tmp_path / "model", media_models.write_lines(tmp_path / "ask.jsonl", rows), tmp_path / "out")
    net = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for row, item in zip(rows, found, strict=True):
        assert item["error"] is None
        sounds = []
        for name in row.get("audios", []):
            samples, rate = decode_wav((tmp_path / name).read_bytes(), name)
            sounds.append(resample(samples, rate, 16000))
        parts: list[dict[str, Any]] = []
        for index, piece in enumerate(str(row["question"]).split("<audio>")):
            parts += [{"type": "audio"}] if index else []
            parts += [{"type": "text", "text": piece}] if piece else []
        text = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
        )
        given = {"audio": sounds, "sampling_rate": 16000} if sounds else {}
        made = processor(text=[text], return_tensors="pt", **given)
        with torch.no_grad():
            ids = net.eval().generate(**made, max_new_tokens=5, do_sample=False, eos_token_id=-1)
        length = made["input_ids"].shape[1]
        assert item["prompt_ids"] == made["input_ids"][0].tolist()
        assert item["output_ids"] == ids[0, length : length + len(item["output_ids"])].tolist()
    scores = [s for batch in TableReader(tmp_path / "out" / "scores.arrow", EVAL_SCORES_V1) for s in batch.to_pylist()]
    assert (scores[0]["rule"], scores[0]["ok"]) == ("wer", False)
    assert 0 <= scores[0]["score"] < 1


def test_sounds_that_cannot_be_heard_are_errors_of_their_question(tmp_path: Path) -> None:
    tiny_audio.write_model(tmp_path / "model")
    tiny_audio.save_sound(tmp_path / "long.wav", 16000 * tiny_audio.SECONDS + 1)
    (tmp_path / "text.wav").write_bytes(b"hello")
    rows = [{"question": "<audio>?", "audios": [name]} for name in ("long.wav", "text.wav")]
    found = ask(tmp_path / "model", media_models.write_lines(tmp_path / "ask.jsonl", rows), tmp_path / "out")
    assert "has 2.0 s, the model hears 2 s" in found[0]["error"]
    assert "no sound in WAV" in found[1]["error"]
    (tmp_path / "ask.jsonl").write_text('{"question": "?", "audios": ["long.wav"]}')
    with pytest.raises(ArtifactError, match="has 1 audios and 0 places"):
        read_questions(Eval(), tmp_path / "ask.jsonl")
