"""Ids on every nineteenth document of `mixed_text`; `python tests/bpe_exact.py` compares all of it."""

import itertools

import assets
import bpe_exact
import mixed_text
import pytest

from postmill import _native

pytest.importorskip("tokenizers")


@pytest.mark.slow
@pytest.mark.parametrize("family", bpe_exact.FAMILIES)
def test_ids_are_those_of_others(family):
    folder, path = mixed_text.mixed_text(), assets.tokenizer_json(family)
    if folder is None or path is None:
        pytest.skip("the packages of the text or of the tokenizer could not be fetched")
    ours = _native.Tokenizer(path.read_bytes())
    assert ours.refused is None
    for rival, encode in bpe_exact.rivals(family, path).items():
        # sizes of documents come round every six, so a step that shares a factor with six would miss the long ones
        documents = itertools.islice(mixed_text.documents(folder), 0, None, 19)
        found = bpe_exact.compare(ours, encode, documents)
        assert found.tokens > 1_000_000
        assert (found.differences, found.first) == (0, ""), rival
