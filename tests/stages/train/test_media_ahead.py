"""Pictures are made beside the step before: the same run, and nothing left to wait for."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
import torch

from postmill.io.errors import ArtifactError
from postmill.stages.options import make
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.media import pixels
from postmill.stages.train.config import STAGE, Train

pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ahead")
    tiny_vlm.write_model(folder / "model", "qwen2_5_vl")
    data = tiny_vlm.write_rows(folder / "data", number=40)
    return folder / "model", tiny_vlm.write_packed(folder / "packed", folder / "model", data, 256)


def run(case: tuple[Path, Path], out: Path) -> list[dict[str, Any]]:
    model, packed = case
    cfg = make(Train, epochs=2, bins_per_step=2, micro_bins=1, lr=1e-3, warmup=0.0, tuner="full")
    run_stage(STAGE, cfg, {"packed": [str(packed)], "model": [str(model)]}, out, Options(threads=1))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_the_same_with_pictures_made_ahead(
    case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the first micro-batch's pictures are made in threads; weights are equal to the bit."""
    makers: list[str] = []
    made = pixels.Pixels._processed

    def noted(self: Any, item: Any) -> Any:
        makers.append(threading.current_thread().name.partition("_")[0])
        return made(self, item)

    monkeypatch.setattr(pixels.Pixels, "_processed", noted)
    ahead = run(case, tmp_path / "ahead")
    assert makers.count("pixels") > 2 * makers.count("MainThread") > 0
    makers.clear()
    monkeypatch.setattr(pixels.Pixels, "expect", lambda *given: None)
    plain = run(case, tmp_path / "plain")
    assert set(makers) == {"MainThread"}
    assert [(line["loss"], line["grad_norm"]) for line in ahead] == [
        (line["loss"], line["grad_norm"]) for line in plain
    ]


def test_a_fault_is_raised_where_its_batch_is_asked_for(case: tuple[Path, Path]) -> None:
    import numpy as np

    from postmill.io.packed import PackedReader

    model, packed = case
    tokens = PackedReader(packed).token_rows
    [row] = [each for each in tokens.pictures(np.array([0, 1, 2])) if each][:1]
    gone = [item._replace(reference="gone.png", digest=bytes(32)) for item in row]
    maker = pixels.Pixels(model)
    maker.expect([gone, row])
    starts, ids = [0, max(item.end for item in row)], torch.zeros(max(item.end for item in row), dtype=torch.long)
    assert maker.media([row], ids, starts, [0]) is not None
    with pytest.raises(ArtifactError, match=r"gone.png: a picture of the rows cannot be read"):
        maker.media([gone], ids, starts, [0])
