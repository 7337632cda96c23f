"""Our BPE engine against the `tokenizers` package, through Python. The Rust tests prove it; these hold its face."""

import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path

import assets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_json import byte_letters

from postmill import _native

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "",
    " ",
    "Hello, world! We're here; it's 12345 o'clock.\n\n\tdef f(x):\r\n    return x  # done\n",
    "中文分词是自然语言处理的基础。2026年。日本語の文章。한국어 문장 Привет עברית हिन्दी",
    "e\u0301 \u1100\u1161\u11a8 👩\u200d👩\u200d👧 🇩🇪 \u00a0\u3000\ufeff naïve ﬁ ²³ ½",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start <|eot_id|><|begin_of_text|>",
    "a" * 5000 + " " * 5000 + "\n" * 500 + "ab" * 3000,
]


def _families() -> dict[str, Path]:
    found = {"qwen3": assets.qwen3_tokenizer(), "llama31": assets.llama31_tokenizer()}
    return {name: folder / "tokenizer.json" for name, folder in found.items() if folder}


@pytest.fixture(scope="module", params=["qwen3", "llama31"])
def both(request: pytest.FixtureRequest):
    path = _families().get(request.param)
    if path is None:
        pytest.skip(f"the tokenizer of {request.param} could not be fetched")
    data = path.read_bytes()
    return _native.Tokenizer(data), tokenizers.Tokenizer.from_str(data.decode())


def _theirs(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_ids_are_those_of_the_package(both):
    ours, theirs = both
    assert ours.refused is None
    assert ours.engine.startswith("postmill bpe")
    for text in TEXTS:
        ids = ours.encode(text)
        assert memoryview(ids).format == "I"
        assert ids.tolist() == _theirs(theirs, text)


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aZ's \n\r\t1!/中e\u0301<|im_end|>")), max_size=80)
)
def test_any_text_gives_the_ids_of_the_package(both, text):
    ours, theirs = both
    assert ours.encode(text).tolist() == _theirs(theirs, text)


def test_threads_and_batches_change_nothing(both):
    ours, _ = both
    long = "".join(TEXTS) * 400
    texts = [*TEXTS, long, *TEXTS]
    expected = [ours.encode(text) for text in texts]
    for threads in (1, 2, 8):
        made = ours.encode_batch(texts, threads=threads)
        ids, offsets = np.asarray(made.ids), np.asarray(made.offsets)
        assert (ids.dtype, offsets.dtype) == (np.uint32, np.int64)
        assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [e.tolist() for e in expected]
        assert [ids.tolist() for ids in made] == [e.tolist() for e in expected]
        assert np.array_equal(ours.encode(long, threads=threads), expected[len(TEXTS)])
    empty = ours.encode_batch([])
    assert (len(empty), empty.ids.tolist(), empty.offsets.tolist()) == (0, [], [0])


def test_texts_come_as_bytes_or_arrow_and_ids_leave_as_arrow(both):
    ours, _ = both
    expected = [ours.encode(text).tolist() for text in TEXTS]
    types = [pa.utf8(), pa.large_utf8(), pa.string_view()]
    forms = [[text.encode() for text in TEXTS], pa.chunked_array([TEXTS[:2], TEXTS[2:]])]
    for texts in [*forms, *(pa.array(TEXTS, kind) for kind in types), pa.array(["x", *TEXTS])[1:]]:
        made = pa.array(ours.encode_batch(texts))
        assert made.type == pa.large_list(pa.field("item", pa.uint32(), nullable=False))
        made.validate(full=True)
        assert made.to_pylist() == expected
    with pytest.raises(TypeError, match="nulls"):
        ours.encode_batch(pa.array(["a", None]))
    with pytest.raises(TypeError, match="Int64"):
        ours.encode_batch(pa.array([1]))
    with pytest.raises(UnicodeDecodeError):
        ours.encode(b"\xff")


def test_arrays_share_their_memory(both):
    ours, _ = both
    ids = ours.encode("Hello, world")
    view = memoryview(ids)
    array = np.asarray(ids)
    assert (view.format, view.itemsize, view.readonly, view.tolist()) == ("I", 4, True, ids.tolist())
    assert array.tolist() == ids.tolist() == [ids[i] for i in range(len(ids))]
    assert (ids[-1], len(ids), array.nbytes) == (array[-1], array.size, view.nbytes)
    assert array.ctypes.data == np.frombuffer(view, np.uint32).ctypes.data
    with pytest.raises(IndexError, match="index"):
        ids[len(ids)]
    del ids, view
    assert (array >= 0).all()  # the array keeps what it shows


def test_numpy_is_not_imported_to_encode():
    folder = assets.qwen3_tokenizer()
    if folder is None:
        pytest.skip("the tokenizer of qwen3 could not be fetched")
    code = (
        "import sys; from postmill import _native as n; "
        "t = n.Tokenizer(open(sys.argv[1], 'rb').read()); t.encode_batch(['a b']).ids.tolist(); "
        "print(sorted({'numpy', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    argv = [sys.executable, "-c", code, str(folder / "tokenizer.json")]
    assert subprocess.run(argv, capture_output=True, check=True, text=True).stdout == "[]\n"


def test_one_tokenizer_serves_many_threads(both):
    ours, _ = both
    text = "".join(TEXTS)
    expected = ours.encode(text).tolist()
    found: list[bool] = []
    workers = [threading.Thread(target=lambda: found.append(ours.encode(text).tolist() == expected)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [True] * 8


def test_ends_tile_the_text(both):
    ours, theirs = both
    for text in TEXTS:
        ids, ends = (np.asarray(array) for array in ours.encode_with_ends(text))
        size = len(text.encode())
        assert ids.tolist() == _theirs(theirs, text)
        assert (np.diff(ends.astype(np.int64)) >= 0).all()
        assert size == 0 or ends[-1] == size


def test_another_kind_of_tokenizer_is_left_to_the_package():
    vocab = {"[UNK]": 0, "hello": 1, "world": 2}
    file = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }  # fmt: skip
    ours = _native.Tokenizer(json.dumps(file).encode())
    assert ours.engine.startswith("tokenizers")
    assert ours.refused is not None
    assert ours.encode("hello there world").tolist() == [1, 0, 2]
    assert [ids.tolist() for ids in ours.encode_batch(["hello", "", "world"])] == [[1], [], [2]]


@pytest.mark.parametrize("model", ["Unigram", "BPE"])
def test_threads_change_nothing_where_the_package_encodes(model):
    words = ["▁", "a", "b", "▁a", "▁ab", "ba"]
    vocab = [["<unk>", 0.0], *([word, -1.0 - i] for i, word in enumerate(words))]
    models = {
        "Unigram": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False},
        "BPE": {
            "type": "BPE", "unk_token": "<unk>", "vocab": {word: i for i, (word, _) in enumerate(vocab)},
            "merges": [["▁", "a"], ["b", "a"]],
        },
    }  # fmt: skip
    file = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None, "decoder": None, "model": models[model],
    }  # fmt: skip
    data = json.dumps(file).encode()
    ours, theirs = _native.Tokenizer(data), tokenizers.Tokenizer.from_str(data.decode())
    texts = ["", "ab", "a ba " * 50, "", "xyz", "b"] * 7
    for threads in (1, 2, 3, 50):
        made = ours.encode_batch(texts, threads=threads)
        assert [ids.tolist() for ids in made] == [_theirs(theirs, text) for text in texts]
    assert len(ours.encode_batch([], threads=4)) == 0


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"model": {}}', b"\xff"])
def test_bytes_that_are_no_tokenizer_are_one_line(damage):
    with pytest.raises(_native.NativeError) as caught:
        _native.Tokenizer(damage)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [None, "2.0", 1])
def test_a_version_that_the_package_refuses_is_refused(version):
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    file = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "vocab": {letter: i for i, letter in enumerate(byte_letters())}, "merges": []},
    }  # fmt: skip
    assert _native.Tokenizer(json.dumps(file).encode()).refused is None
    with pytest.raises(_native.NativeError, match=r"line 1 column|version"):
        _native.Tokenizer(json.dumps(file | {"version": version}).encode())
