"""A model that hears, of a few ten thousand random weights, its processor, and sounds to give it."""

import io
import wave
from pathlib import Path
from typing import Any

import media_models

SECONDS = 2
TEMPLATE = (
    "{% set count = namespace(value=0) %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}{% set count.value = count.value + 1 %}"
    "Audio {{ count.value }}: <|audio_bos|><|AUDIO|><|audio_eos|>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def processor() -> Any:
    """Qwen2-Audio's, for sounds of up to two seconds."""
    import transformers as t

    names = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    hears = t.WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS)
    return t.Qwen2AudioProcessor(hears, media_models.tokenizer(names), chat_template=TEMPLATE)


def write_model(folder: Path, seed: int = 0) -> Any:
    """A model folder with its processor; returns the processor."""
    import torch
    import transformers as t

    made = processor()
    folder.mkdir(parents=True, exist_ok=True)
    made.save_pretrained(folder)
    text = {
        "model_type": "qwen2",
        "vocab_size": len(made.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    audio = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "num_mel_bins": 16,
        "max_source_positions": 50 * SECONDS,
        "init_std": 0.2,
    }
    number = made.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    config = t.Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=number)
    config.audio_token_id = number
    torch.manual_seed(seed)
    t.Qwen2AudioForConditionalGeneration(config).float().save_pretrained(folder)
    return made


def samples(length: int, seed: int = 0) -> Any:
    """Tones and noise, as 16-bit numbers."""
    import numpy as np

    rng = np.random.default_rng(seed + length)
    at = np.arange(length) / 16000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 100 * (seed % 7)) * at) + 0.05 * rng.standard_normal(length)
    return (np.clip(tone, -1, 1) * 32767).astype("<i2")


def wav_bytes(values: Any, rate: int = 16000, channels: int = 1) -> bytes:
    """Values of 16 bits as a file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.tobytes())
    return out.getvalue()


def save_sound(path: Path, length: int, seed: int = 0, rate: int = 16000) -> Path:
    """A sound of `length` samples as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_bytes(samples(length, seed), rate))
    return path
