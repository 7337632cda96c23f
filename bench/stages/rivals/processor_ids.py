"""Ids of rows with a picture each by transformers' processor, in processes that are loaded before the clock starts.

python processor_ids.py MODEL PROCESSES SECONDS_FILE PICTURE...
"""

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

_held: dict[str, Any] = {}


def begin(folder: str) -> None:
    """Load the processor."""
    import torch
    from transformers import AutoProcessor

    torch.set_num_threads(1)
    _held["processor"] = AutoProcessor.from_pretrained(folder)


def ids_of(file: str) -> list[int]:
    """Of a question about a picture and its answer."""
    from PIL import Image

    with Image.open(file) as image:
        picture = image.convert("RGB")
    user = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A photograph of coloured squares."}]}
    made = _held["processor"].apply_chat_template([user, answer], tokenize=True, return_dict=True)
    return list(made["input_ids"][0])


def main() -> None:
    """Write the seconds that all pictures took."""
    folder, processes, seconds, *files = sys.argv[1:]
    with multiprocessing.get_context("spawn").Pool(int(processes), begin, (folder,)) as pool:
        pool.map(ids_of, files[:1] * int(processes), chunksize=1)
        start = time.perf_counter()
        pool.map(ids_of, files, chunksize=4)
        Path(seconds).write_text(str(time.perf_counter() - start), encoding="utf-8")


if __name__ == "__main__":
    main()
