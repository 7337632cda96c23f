"""GGUF files: what the `gguf` package reads in ours, and damaged ones refused with a line."""

import struct
from pathlib import Path

import numpy as np
import pytest

from postmill.io.errors import ArtifactError, StageError
from postmill.io.gguf_file import GgufFile, GgufWriter, Value

METADATA: dict[str, Value] = {
    "general.architecture": "llama",
    "a.count": 7,
    "a.large": 2**40,
    "a.share": 0.5,
    "a.yes": True,
    "a.texts": ["eins", "zwei ä"],
    "a.numbers": [1, -2, 3],
    "a.floats": [0.25, -1.0],
    "a.none": [],
}


def write(path: Path) -> Path:
    """One tensor of odd length, one of blocks, written in pieces and out of order."""
    tensors = {"odd": ("f32", (3,)), "blocks.weight": ("q8_0", (2, 64))}
    with GgufWriter(path, METADATA, tensors) as writer:
        blocks = memoryview(bytes(range(136)))
        writer.write("blocks.weight", blocks[68:], 68)
        writer.write("odd", memoryview(np.array([1, 2, 3], np.float32).tobytes()))
        writer.write("blocks.weight", blocks[:68])
    return path


def test_gguf_reads_what_we_write(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    theirs = gguf.GGUFReader(write(tmp_path / "m.gguf"))
    for key, value in METADATA.items():
        if value != []:
            assert theirs.fields[key].contents() == value
    odd, blocks = theirs.tensors
    assert odd.data.tolist() == [1, 2, 3]
    assert (blocks.name, blocks.tensor_type.name, blocks.shape.tolist()) == ("blocks.weight", "Q8_0", [64, 2])
    assert blocks.data.tobytes() == bytes(range(136))


def test_we_read_what_we_write(tmp_path: Path) -> None:
    with GgufFile(write(tmp_path / "m.gguf")) as file:
        assert file.metadata == METADATA
        assert file.tensors["blocks.weight"].shape == (2, 64)
        assert file.read("blocks.weight") == bytes(range(136))
        assert np.frombuffer(file.read("odd"), np.float32).tolist() == [1, 2, 3]


def test_a_tensor_that_was_not_written_whole_is_a_fault(tmp_path: Path) -> None:
    with (
        pytest.raises(StageError, match="odd was not written whole"),
        GgufWriter(tmp_path / "m.gguf", {}, {"odd": ("f32", (3,))}) as writer,
    ):
        writer.write("odd", memoryview(bytes(8)))


def test_every_cut_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf").read_bytes()
    for length in range(len(whole) - 1 - 24):  # the last bytes are padding
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ArtifactError) as caught:
            GgufFile(tmp_path / "cut")
        assert caught.value.code == 65


@pytest.mark.parametrize(
    ("at", "form", "value", "says"),
    [
        (4, "I", 2, "version 2"),
        (8, "Q", 2**60, "header ends"),
        (24, "Q", 2**62, "header ends"),
        (24 + 8 + 20, "I", 99, "metadata of type 99"),
    ],
)
def test_numbers_that_lie_are_refused(at: int, form: str, value: int, says: str, tmp_path: Path) -> None:
    raw = bytearray(write(tmp_path / "m.gguf").read_bytes())
    struct.pack_into(f"<{form}", raw, at, value)
    (tmp_path / "bad").write_bytes(raw)
    with pytest.raises(ArtifactError, match=says):
        GgufFile(tmp_path / "bad")


def test_a_missing_file_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        GgufFile(tmp_path / "none")
    assert caught.value.code == 66
