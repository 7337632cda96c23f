"""Videos as lists of frames: ids, positions and log-probabilities are those of the family's own processor and model."""

from pathlib import Path
from typing import Any

import media_models
import numpy as np
import pytest
import tiny_vlm
import torch
from media_case import TOLERANCE, Rows, largest

from postmill.io.errors import ArtifactError
from postmill.io.ledger import read_ledger

pytest.importorskip("torchvision")
FPS = {0: 2, 1: 24, 2: 29.97, 3: 1}
COUNTS = {0: 3, 1: 14, 2: 8, 3: 1}


def frames(folder: Path, index: int) -> list[str]:
    names = [f"v{index}/{number:03}.png" for number in range(COUNTS[index])]
    for number, name in enumerate(names):
        media_models.save_picture(folder / name, 60 + 20 * index, 90, seed=number)
    return names


def write_rows(folder: Path) -> Path:
    """One video a row, two of them in the last, which has a picture between them; and a row of text."""
    rows: list[dict[str, Any]] = []
    for index in range(4):
        video = {"frames": frames(folder, index), "fps": FPS[index]}
        row: dict[str, Any] = {"query": "<video>what?", "response": f"it is {index}", "videos": [video]}
        if index == 3:
            media_models.save_picture(folder / "p.png", 70, 70)
            row |= {"query": "<video>and<image>or<video>?", "videos": [video, frames(folder, 0)], "images": ["p.png"]}
        rows.append(row)
    rows.append({"query": "hello", "response": "there"})
    return media_models.write_lines(folder / "rows.jsonl", rows)


class Case(Rows):
    """A tiny model that sees videos, and its rows."""

    def __init__(self, folder: Path) -> None:
        self.processor = tiny_vlm.write_model(folder / "model", "qwen2_5_vl")
        (folder / "data").mkdir()
        data = write_rows(folder / "data")
        super().__init__(folder / "model", tiny_vlm.write_packed(folder / "packed", folder / "model", data, 2048))

    def own(self, row: int) -> Any:
        """The processor's tensors of a row's conversation."""
        from PIL import Image

        ordinals = np.array([row])
        items = self.reader.token_rows.pictures(ordinals)[0]
        videos = [[Image.open(place).convert("RGB") for _, place in v.frames()] for v in items if v.kind == "video"]
        images = [Image.open(p.place).convert("RGB") for p in items if p.kind == "image"]
        fps = [item.rate / 1000 for item in items if item.kind == "video"]
        see = {
            "video": "<|vision_start|><|video_pad|><|vision_end|>",
            "image": "<|vision_start|><|image_pad|><|vision_end|>",
        }
        text = {0: "{video}what?", 3: "{video}and{image}or{video}?", 4: "hello"}.get(row, "{video}what?").format(**see)
        answer = "there" if row == 4 else f"it is {row}"
        whole = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        made = self.processor(
            text=[whole], images=images or None, videos=videos or None, do_sample_frames=False, return_tensors="pt"
        )
        if videos:
            made["second_per_grid_ts"] = torch.tensor([2 / each for each in fps])
        return made


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("videos"))


def test_ids_and_positions_are_the_processors_and_the_models(case: Case) -> None:
    net: Any = case.net
    for row in range(case.reader.num_rows):
        made, batch = case.own(row), case.batch([row])
        assert batch.input_ids_1T[0].tolist() == made["input_ids"][0].tolist()
        if batch.media is None:
            continue
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        given = {name: made[name] for name in names if name in made}
        positions, _ = net.model.get_rope_index(**given)
        assert torch.equal(batch.media.position_ids_31T, positions)
        pixels = batch.media.seen["video"].inputs["pixel_values_videos"]
        assert torch.equal(pixels, made["pixel_values_videos"])


def test_log_probabilities_are_the_models_alone_and_packed(case: Case) -> None:
    from transformers import AutoModelForMultimodalLM

    net = AutoModelForMultimodalLM.from_pretrained(case.folder, dtype=torch.float32).eval()
    rows = list(range(case.reader.num_rows))
    expected = []
    for row in rows:
        made = case.own(row)
        with torch.no_grad():
            logits = net(**made, use_cache=False).logits[0]
        expected.append(logits[:-1].log_softmax(-1).gather(-1, made["input_ids"][0, 1:, None]).squeeze(-1))
    assert largest([case.logp(case.batch([row]))[0] for row in rows], expected) < TOLERANCE
    assert largest(case.logp(case.batch(rows)), expected) < TOLERANCE
    batch = case.batch([1])
    assert batch.media is not None
    counted = batch.media._replace(position_ids_31T=batch.position_ids_1T.expand(3, 1, -1))
    assert largest(case.logp(batch._replace(media=counted)), [expected[1]]) > 1e-3


def test_videos_train(case: Case, tmp_path: Path) -> None:
    from postmill.stages.options import make
    from postmill.stages.runner import Options, run_stage
    from postmill.stages.train.config import STAGE, Train

    cfg = make(Train, steps=2, bins_per_step=1, lr=1e-2, warmup=0.0, tuner="full")
    run_stage(STAGE, cfg, {"packed": [str(case.packed)], "model": [str(case.folder)]}, tmp_path / "run", Options())
    assert (tmp_path / "run" / "processor_config.json").is_file()


def test_videos_that_cannot_be_are_lines_of_the_ledger(case: Case, tmp_path: Path) -> None:
    from postmill.stages.runner import Options, run_stage
    from postmill.stages.tokenize.config import STAGE, Tokenize

    for number in range(3):
        media_models.save_picture(tmp_path / f"{number}.png", 60, 60 + 30 * (number == 2))
    bad: list[tuple[Any, str]] = [
        (["0.png", "2.png"], "media_size"),
        (["0.png", "gone.png"], "media_missing"),
        (["0.png", "../x.png"], "media_missing"),
        (["0.png", "/etc/passwd"], "media_refused"),
        ({"frames": []}, "media_empty"),
        ({"frames": ["0.png"], "fps": 0}, "media"),
        ({"path": "a.mp4"}, "media"),
    ]
    rows: list[dict[str, Any]] = [{"query": "<video>?", "response": "a", "videos": [video]} for video, _ in bad]
    rows += [
        {"query": "<video>?", "response": "a", "video": "a.mp4"},
        {"query": "?", "response": "a", "videos": [["0.png"]]},
    ]
    reasons = [reason for _, reason in bad] + ["media_format", "media_tags"]
    good = [{"query": "<video>?", "response": "a", "videos": [["0.png", "1.png"]]}] * (len(rows) + 1)
    data = media_models.write_lines(tmp_path / "rows.jsonl", rows + good)
    given = {"data": [str(data)], "model": [str(case.folder)]}
    run_stage(STAGE, Tokenize(on_bad_row="skip"), given, tmp_path / "out", Options())
    assert [line["reason"] for line in read_ledger(tmp_path / "out").to_pylist()] == reasons
    with pytest.raises(ArtifactError, match=r"rows.jsonl:1: .*frame 2 has another size"):
        run_stage(STAGE, Tokenize(), given, tmp_path / "again", Options())
