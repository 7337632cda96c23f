"""Qwen2-Audio: windows of a spectrum, of which four become a token."""

from typing import Any

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.media.processor import IMAGE_PROCESSOR, Processor


def family(processor: Processor) -> dict[str, Any]:
    """Source: processing_qwen2_audio.py. Raises ConfigError (2) where the folder says too little."""
    names = ("sampling_rate", "hop_length", "chunk_length")
    numbers = [processor.sound.get(name) for name in names]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ConfigError(f"{processor.name}: {names} are {numbers}, expected numbers; mend {IMAGE_PROCESSOR}", USAGE)
    rate, hop, seconds = (int(number or 0) for number in numbers)
    token = processor.token("audio_token", "<|AUDIO|>")
    rule = {"kind": "spectrum", "rate": rate, "hop": hop, "most_samples": rate * seconds}
    marks = [processor.token("audio_bos_token", "<|audio_bos|>"), processor.token("audio_eos_token", "<|audio_eos|>")]
    return {"marks": marks, "audio": {"placeholder": token, "feature": token, "rule": rule}}
