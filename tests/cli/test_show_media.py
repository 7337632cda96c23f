"""Pages of rows with pictures: small copies within a bound, boxes where the picture has them, names that do nothing."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import media_models
import pytest
import tiny_audio

from postmill.cli import show, show_media, view
from postmill.io.media import Medium
from postmill.stages.runner import Options, run_stage
from postmill.stages.tokenize.config import STAGE, Tokenize

pytest.importorskip("torchvision")
HOSTILE = 'a"><script>alert(1)<\\script>&.png'
BOX = [20, 10, 80, 40]
"""Of a picture of 200 by 100 pixels."""


def answered(text: str, images: list[str], **columns: Any) -> dict[str, Any]:
    return {"query": text, "response": "<ref-object>: <bbox>", "images": images} | columns


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with pictures and boxes for two families, whose boxes count thousandths and pixels."""
    folder = tmp_path_factory.mktemp("show")
    media_models.save_picture(folder / HOSTILE, 200, 100)
    media_models.save_picture(folder / "large.jpg", 1600, 1200)
    objects = {"ref": ["cat"], "bbox": [BOX]}
    rows = [
        answered("<image>Where is the cat?", [HOSTILE], objects=objects),
        answered("<image>and<image>?", ["large.jpg", HOSTILE], objects=objects | {"image_id": [1]}),
        {"query": "no picture", "response": "[1, 2, 3, 4]"},
    ]
    media_models.write_lines(folder / "rows.jsonl", rows)
    for name in ("qwen3_vl", "qwen2_5_vl"):
        media_models.save_processor(folder / name, name)
        inputs = {"data": [str(folder / "rows.jsonl")], "model": [str(folder / name)]}
        run_stage(STAGE, Tokenize(), inputs, folder / f"{name}-tokens", Options())
    return folder


def page(words: list[object], target: Path) -> str:
    assert show.run([str(word) for word in [*words, "--html", target]]) == 0
    return target.read_text(encoding="utf-8")


def rectangles(text: str) -> list[list[float]]:
    """Corners of drawn boxes, as shares of the picture that each is in."""
    found = []
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        [(width, height)] = re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)
        sides = [int(width), int(height)] * 2
        for numbers in re.findall(r'<rect[^>]* x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg):
            x, y, wide, high = map(float, numbers)
            found.append([at / side for at, side in zip((x, y, x + wide, y + high), sides, strict=True)])
    return found


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("is_raw", [False, True])
def test_boxes_lie_where_the_row_says(name: str, is_raw: bool, world: Path, tmp_path: Path) -> None:
    """Whether the family writes thousandths, or pixels of the resized picture; on the second of two pictures."""
    words = [world / "rows.jsonl", "-m", world / name] if is_raw else [world / f"{name}-tokens"]
    text = page(words, tmp_path / "x.html")
    wanted = [at / side for at, side in zip(BOX, (200, 100, 200, 100), strict=True)]
    assert rectangles(text) == [pytest.approx(wanted, abs=0.01)] * 2
    assert text.count("<svg") == 3 and "large.jpg, 1600 x 1200, " in text
    assert "image_pad" not in text.replace("<|image_pad|>", "image_pad") or not is_raw


def test_nothing_of_a_name_is_code(world: Path, tmp_path: Path) -> None:
    text = page([world / "qwen3_vl-tokens"], tmp_path / "x.html")
    assert "<script" not in text and text.count("&lt;script&gt;") >= 2
    assert "default-src 'none'" in text and "img-src data:" in text
    assert not re.search(r"https?://", text)
    for uri in re.findall(r'href="([^"]*)"', text):
        assert uri.startswith("data:image/")


def test_copies_are_small_and_those_of_the_picture(world: Path, tmp_path: Path) -> None:
    from PIL import Image

    text = page([world / "qwen3_vl-tokens"], tmp_path / "x.html")
    seen = [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in re.findall(r'href="data:[^,]*,([^"]*)"', text)]
    assert [image.size for image in seen] == [(200, 100), (320, 240), (200, 100)]
    wanted = media_models.picture(200, 100).convert("RGB")
    points = [(12, 6), (112, 56), (187, 93)]  # in the middle of a square
    for point in points:
        assert seen[0].convert("RGB").getpixel(point) == pytest.approx(wanted.getpixel(point), abs=12)


def test_what_cannot_be_seen_says_why(world: Path, tmp_path: Path) -> None:
    medium = Medium("image", 0, 9, 9, (1, 2, 2), 4, 0, bytes(32), "gone.png", str(world), None, 20, 10)
    shown = show_media.Copies().show(medium)
    assert shown.picture == "" and "gone.png: a picture of the rows cannot be read" in shown.fault
    large = Medium("image", 0, 9, 9, (1, 2, 2), 4, 0, bytes(32), "large.jpg", str(world), None, 20, 10)
    assert "is another picture" in show_media.Copies().show(large).fault
    assert "<svg" not in show_media.to_html(shown, [(0.0, 0.0, 1.0, 1.0)])


def test_a_page_has_a_bound(world: Path) -> None:
    content = media_models.picture_bytes(300, 300, "JPEG")
    from blake3 import blake3

    def medium(number: int) -> Medium:
        data = content + bytes([number])
        return Medium("image", 0, 9, 9, (1, 2, 2), 4, 0, blake3(data).digest(), None, None, data, 300, 300)

    one = len(show_media.Copies().show(medium(0)).picture)
    copies = show_media.Copies(3 * one)
    made = [copies.show(medium(number)) for number in range(6)]
    assert [bool(shown.picture) for shown in made] == [True] * 3 + [False] * 3
    assert "as many pictures as it may hold" in made[5].fault
    assert copies.show(medium(0)).picture, "the same picture again takes no room"


def test_sounds_have_their_name_and_length(tmp_path: Path) -> None:
    tiny_audio.processor().save_pretrained(tmp_path / "model")
    tiny_audio.save_sound(tmp_path / "a.wav", 24_000)
    row = {"query": "<audio>what?", "response": "a tone", "audios": ["a.wav"]}
    data = media_models.write_lines(tmp_path / "rows.jsonl", [row])
    text = page([data, "-m", tmp_path / "model"], tmp_path / "x.html")
    assert re.search(r"sound a\.wav, 1\.50 s, \d+ tokens", text) and "<svg" not in text


def test_a_terminal_names_pictures(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.run([str(world / "qwen3_vl-tokens"), "-n", "1"]) == 0
    out = capsys.readouterr().out
    assert "alert(1)<\\script>&.png, 200 x 100, " in out and "<|image_pad|>" not in out


def test_the_page_of_view_has_them(world: Path, tmp_path: Path) -> None:
    data = json.loads(_data_of(view.page_of(world / "qwen3_vl-tokens")))
    blocks = [block for block in data["tables"][0]["details"]["1"] if "picture" in block]
    assert [block["picture"][1:3] for block in blocks] == [[320, 240], [200, 100]]
    assert blocks[0]["picture"][3] == [] and blocks[1]["picture"][3] == [pytest.approx([0.1, 0.1, 0.4, 0.4])]


def _data_of(made: bytes) -> bytes:
    import gzip

    packed = re.search(rb'id="data">([^<]*)</script>', made)
    assert packed is not None
    return gzip.decompress(base64.b64decode(packed[1]))
