"""Reading and writing safetensors, against the library everyone uses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from postmill.io.errors import ArtifactError, StageError
from postmill.io.safetensors_file import DTYPE_BITS, SafetensorsFile, SafetensorsWriter, open_weights, shard_index

ARRAYS = {
    "a.weight": np.arange(123, dtype=np.float32).reshape(3, 41),
    "b": np.array(7, np.int64),
    "empty": np.zeros((0, 5), np.float16),
    "ünï": np.arange(5, dtype=np.uint8),
}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"format": "np"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"format": "np"}
        assert set(file.tensors) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert file.tensors[name].shape == array.shape
            assert file.read(name) == array.tobytes()
        part = bytearray(8)
        file.read_into("a.weight", 12, memoryview(part))
        assert part == ARRAYS["a.weight"].tobytes()[12:20]


def test_library_reads_what_we_write(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    save_file(ARRAYS, source)
    names = {"F32": np.float32, "I64": np.int64, "F16": np.float16, "U8": np.uint8}
    dtypes = {np.dtype(kind): name for name, kind in names.items()}
    layout = {name: (dtypes[array.dtype], array.shape) for name, array in ARRAYS.items()}
    with (
        SafetensorsFile(source) as file,
        SafetensorsWriter(tmp_path / "out.safetensors", layout, {"format": "pt"}) as writer,
    ):
        writer.copy("b", file, "b")
        writer.copy("ünï", file, "ünï")
        raw = memoryview(ARRAYS["a.weight"].tobytes())
        writer.write("a.weight", raw[100:], 100)  # any order
        writer.write("a.weight", raw[:100])
    found = load_file(tmp_path / "out.safetensors")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_gap_is_our_bug(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x.safetensors", {"a": ("F32", (2,))}, {})
    writer.write("a", memoryview(bytes(4)))
    with pytest.raises(StageError, match="a was not written whole"):
        writer.close()


def test_a_file_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(1000, np.float32)}, path)
    with SafetensorsFile(path) as file:
        os.truncate(path, 500)
        with pytest.raises(ArtifactError, match="tensor a: the file was cut"):
            file.read("a")


@settings(deadline=None)  # a busy disk is no fault of the layout
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(set(DTYPE_BITS) - {"F4", "F6_E2M3", "F6_E3M2"})), st.lists(st.integers(0, 4))),
        max_size=5,
    )
)
def test_every_layout_comes_back(
    tmp_path_factory: pytest.TempPathFactory, layout: dict[str, tuple[str, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("w") / "x.safetensors"
    wanted = {name: (dtype, tuple(shape)) for name, (dtype, shape) in layout.items()}
    data = {}
    with SafetensorsWriter(path, wanted, {"k": "v"}) as writer:
        for name in wanted:
            data[name] = os.urandom(writer.num_bytes(name))
            writer.write(name, memoryview(data[name]))
    with SafetensorsFile(path) as file:
        assert {name: (entry.dtype, entry.shape) for name, entry in file.tensors.items()} == wanted
        assert all(file.read(name) == data[name] for name in wanted)


def test_shards_through_their_index(tmp_path: Path) -> None:
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "m-1.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, tmp_path / "m-2.safetensors")
    index = shard_index({"m-1.safetensors": [("a", 8)], "m-2.safetensors": [("b", 12)]})
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    assert json.loads(index)["metadata"]["total_size"] == 20
    with open_weights(tmp_path) as weights:
        assert weights.where == {"a": "m-1.safetensors", "b": "m-2.safetensors"}
        assert weights.entry("b").shape == (3,)


def _index(folder: Path, where: object) -> None:
    save_file({"a": np.ones(2, np.float32)}, folder / "m.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize(
    ("where", "code", "what"),
    [
        ({"a": "../m.safetensors"}, 77, "outside"),
        ({"a": "/etc/passwd"}, 77, "outside"),
        ({"a": "x/m.safetensors"}, 77, "outside"),
        ({"a": ""}, 77, "outside"),
        ({"a": "m\0.safetensors"}, 77, "outside"),
        ({"a": "gone.safetensors"}, 66, "no such file"),
        ({"a": "m.safetensors", "b": "m.safetensors"}, 65, "'b' is not in"),
        ({"b": "m.safetensors"}, 65, "'b' is not in"),
        ({}, 65, "weight_map"),
        ({"a": 1}, 65, "weight_map"),
        ([], 65, "weight_map"),
        (None, 65, "weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, where: object, code: int, what: str) -> None:
    _index(tmp_path, where)
    with pytest.raises(ArtifactError, match=what) as caught:
        open_weights(tmp_path)
    assert caught.value.code == code


def test_a_shard_linked_from_elsewhere_is_refused_but_not_in_the_hubs_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    blobs = tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    _index(snapshot, {"a": "m.safetensors"})
    (snapshot / "m.safetensors").rename(blobs / "0123")
    (snapshot / "m.safetensors").symlink_to("../../blobs/0123")
    with open_weights(snapshot) as weights:
        assert "a" in weights.where
    (blobs / "0123").rename(tmp_path / "elsewhere")
    (snapshot / "m.safetensors").unlink()
    (snapshot / "m.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="link out of the folder") as caught:
        open_weights(snapshot)
    assert caught.value.code == 77


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="neither") as caught:
        open_weights(tmp_path)
    assert caught.value.code == 66
