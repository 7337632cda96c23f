"""Our BPE engine against the `tokenizers` package, through Python. The Rust tests prove it; these hold its face."""

import itertools
import json
import threading
from pathlib import Path

import assets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        assert ids.dtype == np.uint32
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
        ids, offsets = ours.encode_batch(texts, threads=threads)
        assert offsets.dtype == np.int64
        assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [e.tolist() for e in expected]
        assert np.array_equal(ours.encode(long, threads=threads), expected[len(TEXTS)])
    empty_ids, empty_offsets = ours.encode_batch([])
    assert (empty_ids.size, empty_offsets.tolist()) == (0, [0])


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
        ids, ends = ours.encode_with_ends(text)
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
    assert [array.tolist() for array in ours.encode_batch(["hello", "", "world"])] == [[1, 2], [0, 1, 1, 2]]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"model": {}}', b"\xff"])
def test_bytes_that_are_no_tokenizer_are_one_line(damage):
    with pytest.raises(_native.NativeError) as caught:
        _native.Tokenizer(damage)
    assert "\n" not in str(caught.value)
