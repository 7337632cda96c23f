"""From the bytes of a sound to samples of one channel at the rate that a model hears.

WAV is read here; FLAC, Ogg and MP3 by libsndfile, through the package soundfile. Rates are changed here, so that no
library decides what is learned.
"""

import functools
import io
import math
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from postmill.io.errors import BAD_DATA, USAGE, ArtifactError, ConfigError

_PACKED = (b"fLaC", b"OggS", b"ID3", *(bytes([0xFF, second]) for second in (0xFB, 0xFA, 0xF3, 0xF2, 0xE3, 0xE2)))
"""How FLAC, Ogg and MP3 begin."""
MOST_SAMPLES = 1 << 27
"""Of all channels of a packed sound, 512 MiB: silence packs a thousand times smaller than it is."""
RATES = range(1_000, 768_001)
"""Samples a second that are believed: resampling takes memory by the ratio of both rates."""
_ZEROS = 6
"""Zero crossings of the filter on each side."""
_ROLLOFF = 0.99
"""Where the filter begins, as a share of the lower of both rates' halves."""


def decode_sound(data: bytes, place: str) -> tuple[NDArray[np.float32], int]:
    """Samples from -1 to 1, the mean of all channels, and how many of them a second has.

    `place` is what the message calls it. Raises ArtifactError (65) for one that is damaged or of another form, and
    ConfigError (2) where its form needs the package soundfile and that is missing.
    """
    if not data.startswith(_PACKED):
        return decode_wav(data, place)
    try:
        import soundfile
    except (ImportError, OSError) as error:
        message = f"{place}: FLAC, Ogg and MP3 need the package soundfile; pip install 'postmill[audio]'"
        raise ConfigError(message, USAGE) from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames * file.channels > MOST_SAMPLES:
                message = f"{place}: has {file.frames} samples of {file.channels} channels, the most is {MOST_SAMPLES}"
                raise ArtifactError(f"{message}; cut it into several", BAD_DATA)
            if file.samplerate not in RATES:
                raise ArtifactError(f"{place}: says {file.samplerate} samples a second; get it again", BAD_DATA)
            samples_SC, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.SoundFileError as error:
        what = " ".join(str(error).split()).rpartition(": ")[2]
        message = f"{place}: cannot be decoded ({what}); get it again or leave its rows out"
        raise ArtifactError(message, BAD_DATA) from error
    found: NDArray[np.float32] = samples_SC.mean(axis=1, dtype=np.float64).astype(np.float32)
    return found, int(rate)


def decode_wav(data: bytes, place: str) -> tuple[NDArray[np.float32], int]:
    """Samples from -1 to 1, the mean of all channels, and how many of them a second has.

    `place` is what the message calls it. Raises ArtifactError (65) for one that is damaged or of another form.
    """
    form, samples = _chunks(data, place)
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    if tag == 0xFFFE:
        tag = int.from_bytes(form[24:26], "little")
    if (tag, bits) not in ((1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)):
        raise ArtifactError(f"{place}: samples of form {tag} with {bits} bits are not read; convert it", BAD_DATA)
    if channels == 0 or block != channels * bits // 8 or rate not in RATES:
        said = f"{channels} channels, {rate} samples a second, {block} bytes each"
        raise ArtifactError(f"{place}: the WAV says {said}; get it again or leave its rows out", BAD_DATA)
    if len(samples) < block:
        raise ArtifactError(f"{place}: the WAV has no samples; leave its rows out", BAD_DATA)
    samples = samples[: len(samples) // block * block]
    values = _values(samples, tag, bits)
    found: NDArray[np.float32] = values.reshape(-1, channels).mean(axis=1).astype(np.float32)
    return found, rate


def _chunks(data: bytes, place: str) -> tuple[bytes, bytes]:
    """What the chunks `fmt ` and `data` hold."""
    form, at = b"", 12
    while len(data) >= at + 8 and data[:4] == b"RIFF":
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > len(data):
            raise ArtifactError(f"{place}: the WAV ends too early, or does not say where; get it again", BAD_DATA)
        if name == b"fmt ":
            form = data[at + 8 : at + 8 + length]
        if name == b"data" and len(form) >= 16:
            return form, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    raise ArtifactError(
        f"{place}: no sound in WAV, FLAC, Ogg or MP3 form; get it again or leave its rows out", BAD_DATA
    )


def _values(samples: bytes, tag: int, bits: int) -> NDArray[np.float64]:
    if tag == 3:
        return np.frombuffer(samples, f"<f{bits // 8}").astype(np.float64)
    if bits == 8:
        return (np.frombuffer(samples, np.uint8).astype(np.float64) - 128) / 128
    if bits == 24:
        parts = np.frombuffer(samples, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = (parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) >> 8
        return whole.astype(np.float64) / 2**23
    return np.frombuffer(samples, f"<i{bits // 8}").astype(np.float64) / float(2 ** (bits - 1))


def resample(samples: NDArray[np.float32], own: int, wanted: int) -> NDArray[np.float32]:
    """The sound at `wanted` samples a second: `ceil(len * wanted / own)` of them, by a windowed sinc in float64.

    Source: Smith, "Digital Audio Resampling", <https://ccrma.stanford.edu/~jos/resample/>, with torchaudio's defaults:
    six zero crossings, a Hann window, a rolloff of 0.99. The same on every machine but for rounding.
    """
    if own == wanted:
        return samples
    common = math.gcd(own, wanted)
    up, down = wanted // common, own // common
    kernel_UK, width = _filters(up, down)
    padded = np.pad(samples.astype(np.float64), (width, width + down))
    found_UT = torch.nn.functional.conv1d(torch.from_numpy(padded)[None, None], kernel_UK[:, None], stride=down)[0]
    length = -(-len(samples) * up // down)
    resampled: NDArray[np.float32] = found_UT.T.reshape(-1)[:length].numpy().astype(np.float32)
    return resampled


@functools.lru_cache(maxsize=16)
def _filters(up: int, down: int) -> tuple[Tensor, int]:
    """[up, K]: the filter of each of `up` places between samples; how many samples it reaches to the left."""
    base = min(up, down) * _ROLLOFF
    width = math.ceil(_ZEROS * down / base)
    at_K = torch.arange(-width, width + down, dtype=torch.float64) / down
    shift_U = torch.arange(0, -up, -1, dtype=torch.float64) / up
    time_UK = ((shift_U[:, None] + at_K) * base).clamp(-_ZEROS, _ZEROS)
    window_UK = torch.cos(time_UK * math.pi / _ZEROS / 2) ** 2
    return torch.sinc(time_UK) * window_UK * (base / down), width
