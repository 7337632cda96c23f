"""Sounds that are written down: an encoder that hears, a decoder that writes, transcripts scored by word errors."""

from pathlib import Path
from typing import Any

import media_models
import tiny_audio
import torch

from postmill.io.schemas import EVAL_ITEMS_V1, EVAL_SCORES_V1
from postmill.io.table import TableReader
from postmill.stages.eval.config import STAGE, Eval
from postmill.stages.runner import Options, run_stage


def write_model(folder: Path) -> Any:
    """A Whisper of a few ten thousand random weights, without timestamps or languages; returns its processor."""
    import transformers as t

    names = ("<|startoftranscript|>", "<|transcribe|>", "<|translate|>", "<|notimestamps|>", "<|endoftext|>")
    letters = media_models.tokenizer({}, names)
    tokenizer = t.WhisperTokenizerFast(tokenizer_object=letters.backend_tokenizer, eos_token="<|endoftext|>")
    hears = t.WhisperFeatureExtractor(feature_size=16, chunk_length=tiny_audio.SECONDS)
    processor = t.WhisperProcessor(hears, tokenizer)
    processor.save_pretrained(folder)
    number = tokenizer.convert_tokens_to_ids
    config = t.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=50 * tiny_audio.SECONDS,
        max_target_positions=64,
        init_std=0.2,
        decoder_start_token_id=number("<|startoftranscript|>"),
        eos_token_id=number("<|endoftext|>"),
        bos_token_id=number("<|endoftext|>"),
        pad_token_id=number("<|endoftext|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    t.WhisperForConditionalGeneration(config).save_pretrained(folder)
    return processor


def test_transcripts_are_those_of_the_model(tmp_path: Path) -> None:
    """Greedy, against whole passes of transformers' model without a cache."""
    import transformers as t

    processor = write_model(tmp_path / "model")
    for seed in range(3):
        tiny_audio.save_sound(tmp_path / f"{seed}.wav", 9000 + 4000 * seed, seed=seed)
    rows: list[dict[str, Any]] = [
        {"question": "<audio>", "audios": [f"{seed}.wav"], "answer": "a b", "score": "wer"} for seed in range(3)
    ]
    rows.append({"question": "<audio>what is said?", "audios": ["0.wav"]})
    data = media_models.write_lines(tmp_path / "ask.jsonl", rows)
    cfg = Eval(max_new_tokens=8, temperature=0.0, max_errors=1.0)
    run_stage(STAGE, cfg, {"tested": [str(tmp_path / "model")], "ask": [str(data)]}, tmp_path / "out", Options())
    found = [row for b in TableReader(tmp_path / "out" / "items.arrow", EVAL_ITEMS_V1) for row in b.to_pylist()]
    net = t.WhisperForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    for seed, item in enumerate(found[:3]):
        assert item["error"] is None
        sound = tiny_audio.samples(9000 + 4000 * seed, seed) / 32768
        made = processor.feature_extractor(sound, sampling_rate=16000, return_tensors="pt")
        start = processor.tokenizer.prefix_tokens
        ids = list(start)
        for _ in item["output_ids"]:
            with torch.no_grad():
                logits = net(**made, decoder_input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
        assert item["prompt_ids"] == start
        assert item["output_ids"] == ids[len(start) :]
    assert len({tuple(item["output_ids"]) for item in found[:3]}) > 1
    assert "a question is <audio> alone" in found[3]["error"]
    scores = [s for b in TableReader(tmp_path / "out" / "scores.arrow", EVAL_SCORES_V1) for s in b.to_pylist()]
    assert [score["rule"] for score in scores[:3]] == ["wer"] * 3
