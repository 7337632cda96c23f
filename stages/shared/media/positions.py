"""Positions of a row's tokens in three dimensions (m-rope), from where its pictures lie."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from postmill.io.media import Medium

_FRAMES = 2
"""Frames of a video that are one place in time."""


def seconds_of(video: Medium) -> float:
    """Seconds from one place in time to the next."""
    return _FRAMES / (video.rate / 1000)


def mrope_positions(
    length: int, pictures: Sequence[Medium], merge: int, tokens_per_second: float = 0.0
) -> NDArray[np.int64]:
    """Time, height and width of each token, [3, length].

    Text counts on in all three. The features of a picture have its grid's places, counted from where it begins; text
    goes on behind the longest side. merge: patches of a feature's side. tokens_per_second: how far a
    second of a video takes time on; 0 for models that count its grids. Source: `get_rope_index` of Qwen2-VL's model,
    <https://arxiv.org/abs/2409.12191>, section 2.1.
    """
    found = np.empty((3, length), np.int64)
    place = at = 0
    for picture in pictures:
        found[:, at : picture.start] = place + np.arange(picture.start - at)
        place += picture.start - at
        frames, rows, columns = picture.grid[0], picture.grid[1] // merge, picture.grid[2] // merge
        # in float32, as the model computes it
        apart = np.float32(tokens_per_second) * np.float32(seconds_of(picture)) if picture.kind == "video" else 0
        time = (np.arange(frames, dtype=np.float32) * (apart or np.float32(1))).astype(np.int64)
        grid = np.stack(np.meshgrid(time, np.arange(rows), np.arange(columns), indexing="ij"))
        found[:, picture.start : picture.end] = place + grid.reshape(3, -1)
        place += max(rows, columns)
        at = picture.end
    found[:, at:] = place + np.arange(length - at)
    return found
