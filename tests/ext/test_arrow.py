"""Arrow between the native part and other libraries: what is taken, who takes ours, and that no buffer is copied."""

import gc
import json
import re

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import tiny_tokenizer

from postmill import _native

CHAT = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}).encode()


class Capsules:
    """What another library might hand over: an object with one of the methods, and nothing else."""

    def __init__(self, **methods):
        for name, returned in methods.items():
            setattr(self, name, lambda requested_schema=None, returned=returned: returned)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.write_tokenizer(folder)
    return _native.Tokenizer((folder / "tokenizer.json").read_bytes())


TEXTS = ["one", "", "two words", "drei Wörter sind es"]


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(TEXTS),
        pa.array(["no", *TEXTS, "no"]).slice(1, len(TEXTS)),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.chunked_array([TEXTS[:1], [], TEXTS[1:]]),
        pl.Series(TEXTS),
        Capsules(__arrow_c_array__=pa.array(TEXTS).__arrow_c_array__()),
        Capsules(__arrow_c_stream__=pa.chunked_array([TEXTS]).__arrow_c_stream__()),
    ],
    ids=["array", "slice", "large", "view", "chunked", "polars", "capsules", "stream"],
)
def test_texts_of_other_libraries_are_those_of_a_list(tokenizer, texts):
    made, expected = tokenizer.encode_batch(texts), tokenizer.encode_batch(TEXTS)
    assert [one.tolist() for one in made] == [one.tolist() for one in expected]


def test_ids_go_to_other_libraries_uncopied(tokenizer):
    made = tokenizer.encode_batch(TEXTS)
    at = np.asarray(made.ids).ctypes.data
    for _ in range(2):  # each asks for capsules of its own
        array = pa.array(made)
        assert array.type.value_type == pa.uint32() and array.to_pylist() == [one.tolist() for one in made]
        assert array.values.buffers()[1].address == at
    assert pl.Series(made).to_list() == array.to_pylist()
    del made, tokenizer
    gc.collect()
    assert array.to_pylist()[1] == []  # the memory lives as long as anybody needs it


def test_batches_come_and_go_uncopied():
    columns = {"query": ["q", None], "response": ["one", "two"]}
    batch = pa.record_batch(columns)
    lines = _native.batch_to_lines(batch)
    assert [json.loads(line)["response"] for line in lines.splitlines()] == columns["response"]
    assert _native.batch_to_lines(pa.record_batch({"a": [0, 1, 2]}).slice(1, 1)) == b'{"a":1}\n'
    assert _native.batch_to_lines(Capsules(__arrow_c_array__=batch.__arrow_c_array__())) == lines


def test_capsules_nobody_takes_release_what_they_hold():
    batch = pa.record_batch({"a": np.arange(1 << 20)})
    before = pa.total_allocated_bytes()
    for _ in range(4):
        _native.batch_to_lines(batch.slice(0, 1))
        made = pa.array(list(range(1000)))
        capsules = made.__arrow_c_array__()
        taker = Capsules(__arrow_c_array__=capsules)
        with pytest.raises(ValueError, match="expected an Arrow record batch, got Int64"):
            _native.batch_to_lines(taker)
        del made, capsules, taker
    gc.collect()
    assert pa.total_allocated_bytes() == before


def test_our_capsules_have_their_names_and_may_be_dropped(tokenizer):
    made = tokenizer.encode_batch(["text " * 10_000])
    for _ in range(100):
        schema, array = made.__arrow_c_array__(None)
        assert ['"arrow_schema"' in repr(schema), '"arrow_array"' in repr(array)] == [True, True]


def test_other_objects_are_refused_in_one_line():
    batch = pa.record_batch({"a": [1]})
    schema, array = batch.__arrow_c_array__()
    taken = Capsules(__arrow_c_array__=batch.__arrow_c_array__())
    _native.batch_to_lines(taken)
    nulls = pa.StructArray.from_arrays([pa.array([1])], ["a"], mask=pa.array([True]))
    for given, said in (
        (3, "expected an object with __arrow_c_array__"),
        (pa.array([1]), "expected an Arrow record batch, got Int64"),
        (nulls, "expected an Arrow record batch, got a struct array with nulls"),
        (Capsules(__arrow_c_array__=3), "'int' object"),
        (Capsules(__arrow_c_array__=(array, schema)), "incorrect name"),
        (taken, "the Arrow array was taken before"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(said)) as caught:
            _native.batch_to_lines(given)
        assert "\n" not in str(caught.value)


def test_streams_that_fail_say_why(tokenizer):
    def batches():
        yield pa.record_batch({"text": ["one"]})
        raise OSError("the disk is gone")

    reader = pa.RecordBatchReader.from_batches(pa.schema({"text": pa.string()}), batches())
    with pytest.raises((TypeError, ValueError), match="the disk is gone"):
        tokenizer.encode_batch(reader)
