"""Ids on every nineteenth document of `mixed_text` (`python tests/bpe_exact.py` compares all of it), and on texts
without a place to cut."""

import itertools

import adversarial_text
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


@pytest.mark.parametrize("family", bpe_exact.FAMILIES)
def test_ids_of_adversarial_texts_are_those_of_others(family):
    path = assets.tokenizer_json(family)
    if path is None:
        pytest.skip("the package of the tokenizer could not be fetched")
    ours, theirs = _native.Tokenizer(path.read_bytes()), bpe_exact.by_tokenizers(path)
    for size, seed in ((100, 1), (1000, 2), (1100, 3), (20_000, 4)):  # a window of a long word is 1024 bytes
        for name, text in adversarial_text.texts(size, seed).items():
            found = bpe_exact.compare(ours, theirs, [text])
            assert (found.differences, found.first) == (0, ""), (name, size)
