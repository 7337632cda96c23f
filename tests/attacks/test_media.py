"""Files and references that are made to crash, exhaust or misuse whoever reads media.

Each is one clear line with the right code, nothing is fetched, and all of them take less than a GiB of memory.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bad_media
import media_models
import pytest
import tiny_audio
from blake3 import blake3

from postmill.io.errors import BAD_DATA, NO_INPUT, ArtifactError
from postmill.io.media import MOST_BYTES, MOST_PIXELS, Medium
from postmill.io.schemas import TOKENS_V1, with_media
from postmill.io.table import TableReader
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.media.decode import decode
from postmill.stages.tokenize.config import STAGE, Tokenize

CHILD = Path(__file__).parent / "media_child.py"
PICTURES, SOUNDS = bad_media.pictures(), bad_media.sounds()
REFERENCES = bad_media.references(Path(), 0)
FILES = {"image": PICTURES, "audio": SOUNDS}
PREFIX = "postmill tokenize: error: one.jsonl:1: $.messages[0].content[0]: "
LONGEST = 700
"""Characters of a line: no name is printed whole, however long it is."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process of its own says of all of them."""
    pytest.importorskip("torchvision")
    folder = tmp_path_factory.mktemp("attacks")
    media_models.save_processor(folder / "image", "qwen2_5_vl")
    tiny_audio.processor().save_pretrained(folder / "audio")
    media_models.save_picture(folder / "elsewhere" / "a.png", 64, 64)
    (folder / "data").mkdir()
    names: dict[str, dict[str, str]] = {}
    for kind, cases in FILES.items():
        names[kind] = {name: f"{kind}-{number}.png" for number, name in enumerate(cases)}
        for name, case in cases.items():
            (folder / "data" / names[kind][name]).write_bytes(case.content)
    (folder / "files.json").write_text(json.dumps(names))
    argv = [sys.executable, "-P", str(CHILD), str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def is_one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1 and text[:-1].isprintable() and len(text) < LONGEST


def test_there_are_enough() -> None:
    assert len(PICTURES) + len(SOUNDS) >= 80
    assert len(REFERENCES) >= 20


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in FILES.items() for name in cases])
def test_a_bad_file_is_one_line(kind: str, name: str, found: dict[str, Any]) -> None:
    """Of `tokenize`, or of whoever decodes it where its header is that of a good one; then a server refuses it, too."""
    case = FILES[kind][name]
    (code, said), reason = found[kind][name], found[f"{kind} reasons"][name]
    (decode_code, decode_said), (status, sent) = found[f"{kind} decoded"][name], found[f"{kind} sent"][name]
    if case.reason == "decode":
        assert (code, reason) == (0, "kept")
    else:
        assert (code, reason) == (65, case.reason) and said.startswith(PREFIX) and is_one_line(said)
    if name in bad_media.DECODABLE:
        assert (decode_code, status) == (0, 0)
    elif kind == "audio" and case.content.startswith(bad_media.PACKED):
        # without the package that reads them, 2: a line that names it
        assert decode_code in (2, 65) and status == 400 and is_one_line(decode_said)
    else:
        assert decode_code == 65 and name in decode_said and is_one_line(decode_said)
        assert status == 400 and is_one_line(sent)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_hostile_reference_is_one_line(name: str, found: dict[str, Any]) -> None:
    reason = REFERENCES[name][1]
    code, said = found["reference"][name]
    assert (code, found["reference reasons"][name]) == (65, reason)
    assert said.startswith(PREFIX) and is_one_line(said)
    status, sent = found["reference sent"][name]
    assert status == 400 and is_one_line(sent)
    if name in found["reference asked"]:
        code, said = found["reference asked"][name]
        assert code == 65 and is_one_line(said)


def test_nobody_was_asked_and_memory_is_bounded(found: dict[str, Any]) -> None:
    assert found["connections"] == []
    assert found["peak_bytes"] < 1 << 30


def test_the_most_pixels_are_one_number(tmp_path: Path) -> None:
    """Where headers are read and where pictures are decoded, in the same words."""
    side = 8192
    assert side * side == MOST_PIXELS
    media_models.save_processor(tmp_path / "model", "qwen2_5_vl")
    said = []
    for name, width in (("most.png", side), ("over.png", side + 1)):
        (tmp_path / name).write_bytes(bad_media.png(width, side, data=b""))
        row = {"query": "<image>?", "response": "a", "images": [name]}
        given = {"data": [str(media_models.write_lines(tmp_path / f"{name}.jsonl", [row]))]}
        given["model"] = [str(tmp_path / "model")]
        try:
            run_stage(STAGE, Tokenize(), given, tmp_path / f"{name}-out", Options())
        except ArtifactError as error:
            said.append(str(error).partition("the picture has ")[2])
    with pytest.raises(ArtifactError, match="the most is 67108864; shrink it first: mogrify") as refused:
        decode((tmp_path / "over.png").read_bytes(), "over.png")
    assert said == [str(refused.value).partition("the picture has ")[2]]


GOOD = {
    "CMYK": ("jpg", {"mode": "CMYK"}),
    "grey": ("jpg", {"mode": "L"}),
    "a palette": ("png", {"mode": "P"}),
    "a bit": ("png", {"mode": "1"}),
    "grey and transparent": ("png", {"mode": "LA"}),
    "transparent": ("webp", {"mode": "RGBA"}),
    "progressive": ("jpg", {"progressive": True}),
    "turned": ("jpg", {"turned": 6}),
    "turned, a PNG": ("png", {"turned": 8}),
    "a wrong suffix": ("png", {"form": "JPEG"}),
    "no suffix": ("", {"form": "PNG"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_only_looks_bad_is_read(name: str, tmp_path: Path) -> None:
    """Seen upright, in three colours, and counted so."""
    from PIL import Image

    suffix, how = GOOD[name][0], dict(GOOD[name][1])
    form = how.pop("form", {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}.get(suffix))
    turned, mode = how.pop("turned", 1), how.pop("mode", "RGB")
    exif = Image.Exif()
    exif[0x0112] = turned
    file = tmp_path / f"a.{suffix}"
    media_models.picture(90, 70).convert(mode).save(file, form, exif=exif, **how)
    media_models.save_processor(tmp_path / "model", "qwen2_5_vl")
    data = media_models.write_lines(
        tmp_path / "rows.jsonl", [{"query": "<image>?", "response": "a", "images": [file.name]}]
    )
    run_stage(STAGE, Tokenize(), {"data": [str(data)], "model": [str(tmp_path / "model")]}, tmp_path / "out", Options())
    [row] = next(iter(TableReader(tmp_path / "out" / "tokens.arrow", with_media(TOKENS_V1)))).to_pylist()
    [medium] = row["media"]
    size = (70, 90) if turned > 4 else (90, 70)
    assert (medium["width"], medium["height"]) == size
    seen = decode(file.read_bytes(), file.name)
    assert (seen.size, seen.mode) == (size, "RGB")


def swap_large(path: Path) -> None:
    path.touch()
    os.truncate(path, MOST_BYTES + 1)


SWAPS = {
    "gone": (lambda path: None, NO_INPUT, "No such file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), NO_INPUT, "not a file"),
    "a pipe": (os.mkfifo, NO_INPUT, "not a file"),
    "a folder": (Path.mkdir, NO_INPUT, "directory"),
    "links in a circle": (lambda path: path.symlink_to(path), NO_INPUT, "symbolic links"),
    "large": (swap_large, BAD_DATA, "the most is"),
    "another picture": (lambda path: media_models.save_picture(path, 64, 63), BAD_DATA, "is another picture"),
}
"""What lies where a picture was when its row was made: how it came there, the code, and what is said."""


@pytest.mark.parametrize("name", SWAPS)
def test_what_has_taken_the_place_of_a_picture_is_not_read(name: str, tmp_path: Path) -> None:
    put, code, says = SWAPS[name]
    path = media_models.save_picture(tmp_path / "a\n.png", 64, 64)
    digest = blake3(path.read_bytes()).digest()
    medium = Medium("image", 0, 1, 1, (1, 1, 1), 4, 0, digest, path.name, str(tmp_path), None)
    assert medium.load() == path.read_bytes()
    path.unlink()
    put(path)
    with pytest.raises(ArtifactError, match=says) as refused:
        medium.load()
    assert refused.value.code == code and is_one_line(f"{refused.value}\n")
