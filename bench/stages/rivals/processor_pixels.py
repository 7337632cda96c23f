"""Tensors of pictures, by our workers or as a collator makes them. What is loaded first does not count.

python processor_pixels.py ours|processor MODEL SECONDS_FILE PICTURE...
"""

import sys
import time
from pathlib import Path
from typing import Any

BATCH = 8
"""Pictures of a step."""


def by_processor(folder: str, files: list[str]) -> Any:
    """The image processor on the pictures of a step, in the process that trains, as in TRL's collator."""
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)

    def make(batch: list[str]) -> list[Any]:
        pictures = [Image.open(file).convert("RGB") for file in batch]
        return [processor(images=pictures, return_tensors="pt")["pixel_values"]]

    return make


def by_workers(folder: str, files: list[str]) -> Any:
    """`Pixels`, which makes pictures ahead in two threads beside the step, as `train` does."""
    from blake3 import blake3

    from postmill.io.media import Medium
    from postmill.stages.shared.media.pixels import Pixels

    pixels = Pixels(Path(folder), cache_bytes=0)

    def medium(file: str) -> Medium:
        content = Path(file).read_bytes()
        return Medium("image", 0, 1, 1, (1, 1, 1), 1, 0, blake3(content).digest(), None, None, content)

    def make(batch: list[str]) -> list[Any]:
        found = [medium(file) for file in batch]
        pixels.expect([found])
        return [pixels._tensors(one)["pixel_values"] for one in found]

    return make


def main() -> None:
    """Write the seconds that all pictures took."""
    import torch

    which, folder, seconds, *files = sys.argv[1:]
    torch.set_num_threads(2 if which == "processor" else 1)  # ours has two threads of its own
    make = {"ours": by_workers, "processor": by_processor}[which](folder, files)
    make(files[:BATCH])
    start = time.perf_counter()
    for at in range(0, len(files), BATCH):
        make(files[at : at + BATCH])
    Path(seconds).write_text(str(time.perf_counter() - start), encoding="utf-8")


if __name__ == "__main__":
    main()
