"""How many rows with a photograph become tokens in a second, in how much memory? How many pictures become pixels?

The rival is what a data loader of other trainers does with each row: the processor's `apply_chat_template`, in two
processes. Both give the same ids, which is checked first. The processor makes pixels on the way; the stage leaves that
to training, where each picture is needed: there two threads make them beside the step, and the rival is a collator that
calls the image processor for the pictures of a step. Tensors are the same, which is checked first.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Case, Rival

WIDTH, HEIGHT = 640, 427
PROCESSES = 2
RIVALS = Path(__file__).parent / "rivals"
sys.path.insert(1, str(RIVALS))


def cases(smoke: bool) -> Iterator[Case]:
    num_rows, num_theirs, num_files, num_referred = (40, 4, 4, 80) if smoke else (20_000, 200, 200, 100_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        argv = _rows(folder, num_rows, num_files)
        seconds = folder / "seconds"
        files = [folder / f"{number % num_files}.jpg" for number in range(num_theirs)]
        theirs = [sys.executable, RIVALS / "processor_ids.py", folder / "model", PROCESSES, seconds, *files]
        yield Case(
            "tokenize with pictures",
            f"rows a second, each with a JPEG of {WIDTH} by {HEIGHT} pixels, for Qwen2.5-VL",
            "rows/s",
            [
                Rival("postmill tokenize", argv, num_rows, prepare=lambda: _forget(folder)),
                Rival(
                    "transformers' processor",
                    [str(arg) for arg in theirs],
                    num_theirs,
                    f"{PROCESSES} processes, loaded before; {num_theirs} rows, rate extrapolated",
                    seconds=lambda: float(seconds.read_text()),
                ),
            ],
            lambda: _same(folder, argv),
            repeats=3,
            packages=("transformers", "torch", "pillow"),
        )
        yield _pixels(folder, files)
        many = _rows(folder, num_referred, num_files)
        yield Case(
            "tokenize 100,000 rows with pictures",
            "peak memory, and rows a second",
            "rows/s",
            [Rival("postmill tokenize", many, num_referred, prepare=lambda: _forget(folder))],
            repeats=1,
            warm_up=False,
        )


def _forget(folder: Path) -> None:
    shutil.rmtree(folder / "tokens", ignore_errors=True)


def _rows(folder: Path, number: int, num_files: int) -> list[str]:
    """Write rows and their pictures; the command that makes tokens of them."""
    import media_models  # of the tests

    media_models.save_processor(folder / "model", "qwen2_5_vl")
    for index in range(num_files):
        if not (folder / f"{index}.jpg").is_file():
            media_models.save_picture(folder / f"{index}.jpg", WIDTH, HEIGHT, seed=index)
    question, answer = "<image>What is it?", "A photograph of coloured squares."
    rows = [{"query": question, "response": answer, "images": [f"{index % num_files}.jpg"]} for index in range(number)]
    data, tokens = media_models.write_lines(folder / f"{number}.jsonl", rows), folder / "tokens"
    ours = [sys.executable, "-m", "postmill.cli.main", "tokenize", data, "-m", folder / "model", "-o", tokens]
    return [str(arg) for arg in [*ours, "--quiet"]]


def _pixels(folder: Path, files: list[Path]) -> Case:
    """Pictures of a step made by two threads, and by a collator."""
    from transformers import Qwen2_5_VLConfig

    Qwen2_5_VLConfig().save_pretrained(folder / "model")  # which says what the tower takes
    seconds = folder / "pixels-seconds"

    def rival(which: str, name: str, note: str) -> Rival:
        argv = [sys.executable, RIVALS / "processor_pixels.py", which, folder / "model", seconds, *files]
        texts = [str(arg) for arg in argv]
        return Rival(name, texts, len(files), note, seconds=lambda: float(seconds.read_text()))

    def same() -> dict[str, Any]:
        import processor_pixels
        import torch

        names = [str(file) for file in files[: processor_pixels.BATCH]]
        ours = torch.cat(processor_pixels.by_workers(str(folder / "model"), names)(names))
        if not torch.equal(ours, processor_pixels.by_processor(str(folder / "model"), names)(names)[0]):
            raise AssertionError("the tensors differ")
        return {"values_a_picture": ours.numel() // len(names)}

    return Case(
        "pixels in two threads",
        f"pictures a second, JPEG of {WIDTH} by {HEIGHT} pixels, for Qwen2.5-VL",
        "pictures/s",
        [
            rival("ours", "postmill's workers", "two threads ahead of the step"),
            rival("processor", "transformers' processor", "eight pictures a call, torch with two threads"),
        ],
        same,
        repeats=3,
        packages=("transformers", "torch", "torchvision", "pillow"),
    )


def _same(folder: Path, argv: list[str]) -> dict[str, Any]:
    """Raises unless both give the same ids for the first row."""
    from postmill.io.schemas import TOKENS_V1
    from postmill.io.table import TableReader

    shutil.rmtree(folder / "tokens", ignore_errors=True)
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    first = next(iter(TableReader(folder / "tokens" / "tokens.arrow", TOKENS_V1))).column("input_ids")[0].as_py()
    import processor_ids

    processor_ids.begin(str(folder / "model"))
    if first != processor_ids.ids_of(str(folder / "0.jpg")):
        raise AssertionError("the ids of the first row differ")
    return {"tokens_a_row": len(first)}
