"""How many rows with a photograph become tokens in a second, file to file?

The rival is what a data loader of other trainers does with each row: the processor's `apply_chat_template`, in two
processes. Both give the same ids, which is checked first. The processor makes pixels on the way; the stage leaves that
to training, where each picture is needed.
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


def cases(smoke: bool) -> Iterator[Case]:
    import media_models  # of the tests

    num_rows, num_theirs, num_files = (40, 4, 4) if smoke else (20_000, 200, 200)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        media_models.save_processor(folder / "model", "qwen2_5_vl")
        for number in range(num_files):
            media_models.save_picture(folder / f"{number}.jpg", WIDTH, HEIGHT, seed=number)
        rows = [
            {
                "query": "<image>What is it?",
                "response": "A photograph of coloured squares.",
                "images": [f"{number % num_files}.jpg"],
            }
            for number in range(num_rows)
        ]
        data, tokens = media_models.write_lines(folder / "rows.jsonl", rows), folder / "tokens"
        ours = [sys.executable, "-m", "postmill.cli.main", "tokenize", data, "-m", folder / "model", "-o", tokens]
        argv = [str(arg) for arg in [*ours, "--quiet"]]
        seconds = folder / "seconds"
        files = [folder / f"{number % num_files}.jpg" for number in range(num_theirs)]
        theirs = [sys.executable, RIVALS / "processor_ids.py", folder / "model", PROCESSES, seconds, *files]
        yield Case(
            "tokenize with pictures",
            f"rows a second, each with a JPEG of {WIDTH} by {HEIGHT} pixels, for Qwen2.5-VL",
            "rows/s",
            [
                Rival("postmill tokenize", argv, num_rows, prepare=lambda: shutil.rmtree(tokens, ignore_errors=True)),
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


def _same(folder: Path, argv: list[str]) -> dict[str, Any]:
    """Raises unless both give the same ids for the first row."""
    from postmill.io.schemas import TOKENS_V1
    from postmill.io.table import TableReader

    shutil.rmtree(folder / "tokens", ignore_errors=True)
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    first = next(iter(TableReader(folder / "tokens" / "tokens.arrow", TOKENS_V1))).column("input_ids")[0].as_py()
    sys.path.insert(1, str(RIVALS))
    import processor_ids

    processor_ids.begin(str(folder / "model"))
    if first != processor_ids.ids_of(str(folder / "0.jpg")):
        raise AssertionError("the ids of the first row differ")
    return {"tokens_a_row": len(first)}
