"""A tiny model that reads pictures, rows for it, and what it makes of them by our own pass."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny_vlm
import torch

from postmill.io.packed import PackedReader
from postmill.stages.shared import attention, hf
from postmill.stages.shared.asked import Ask
from postmill.stages.shared.batch import Batch, collate
from postmill.stages.shared.forward import Forward
from postmill.stages.shared.media.pixels import Pixels

LOGP = Ask(stats=frozenset({"logp"}))
TOLERANCE = 1e-5
"""Of log-probabilities around 10 in float32: one part in a million."""


class Rows:
    """A model in a folder, packed rows for it, and what it makes of them."""

    def __init__(self, folder: Path, packed: Path) -> None:
        self.folder, self.packed = folder, packed
        self.reader = PackedReader(self.packed)
        kernel = attention.choose("per-row", torch.device("cpu"), torch.float32)
        self.net = hf.load_model(self.folder, torch.float32, attention=kernel)
        self.forward = Forward(self.net, compute_dtype=torch.float32, backend="reference").eval()
        self.pixels = Pixels(self.folder)

    def batch(self, rows: list[int]) -> Batch:
        """Rows laid end to end, every token scored."""
        tokens, ordinals = self.reader.token_rows, np.array(rows)
        laid = tokens.lay(ordinals)
        weights = np.ones_like(laid.weights)
        weights[laid.cu_seqlens[:-1]] = 0
        batch = collate([laid._replace(weights=weights)])
        return batch._replace(media=self.pixels.of_rows(tokens, ordinals, batch))

    def logp(self, batch: Batch) -> list[torch.Tensor]:
        """Log-probabilities of each row's tokens but the first."""
        with torch.no_grad():
            found = self.forward(batch, LOGP).logp_T
        lengths = np.diff(batch.row_starts).tolist()
        return [piece[:-1] for piece in found.split(lengths)]


class Case(Rows):
    """A tiny model that reads pictures, and its rows."""

    def __init__(self, folder: Path, name: str, write_rows: Callable[[Path], Path] | None = None) -> None:
        self.name, model = name, folder / "model"
        self.processor = tiny_vlm.write_model(model, name)
        write_rows = write_rows or functools.partial(tiny_vlm.write_rows, pictures=1 if name == "paligemma" else 2)
        data = write_rows(folder / "data")
        super().__init__(model, tiny_vlm.write_packed(folder / "packed", model, data))


@functools.lru_cache(maxsize=1)
def plain_model(folder: Path) -> Any:
    """The model as transformers loads it; each row of a case asks for it."""
    from transformers import AutoModelForMultimodalLM

    return AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()


def largest(ours: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, others, strict=True))


def trained(case: Rows, folder: Path, ports: Sequence[str] = (), **options: Any) -> Path:
    """A run on all rows of the case, which the other `ports` are given as well."""
    from postmill.stages.options import make
    from postmill.stages.runner import Options, run_stage
    from postmill.stages.train.config import STAGE, Train

    given = {"packed": [str(case.packed)], "model": [str(case.folder)]}
    cfg = make(Train, **({"steps": 2, "bins_per_step": 1, "lr": 1e-2, "warmup": 0.0} | options))
    run_stage(STAGE, cfg, given | {port: [str(case.packed)] for port in ports}, folder, Options())
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForMultimodalLM

    return AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
