"""Folders whose tokenizer is not a tokenizer.json taken as it is: the ids that transformers 5 gives."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from postmill import _native
from postmill.io.errors import ArtifactError
from postmill.io.model_folder import choose_tokenizer_files, tokenizer_digest
from postmill.io.tekken import byte_letters
from postmill.stages.tokenize.tokenizer import load_tokenizer

TEXTS = ["the mill", " the  mill ", "<s>the</s> mill</s>", "mill\nthe", "中 é", "", "<s> the"]


def ours(folder: Path) -> list[list[int]]:
    model = load_tokenizer(folder)
    encoder = _native.ChatEncoder(model.tokenizer_json, extra_special=model.extra_special)
    return [encoder.encode(text)[0] for text in TEXTS]


def theirs(folder: Path) -> list[list[int]]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]


# --- Llama ------------------------------------------------------------------------------------------------------------


def llama(folder: Path, **config: Any) -> Path:
    """A folder as Llama 2's: the file puts a space before every text."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁themil"]
    merges = [["t", "h"], ["th", "e"], ["▁", "the"], ["m", "i"], ["l", "l"], ["mi", "ll"], ["▁", "mill"]]
    names += ["".join(pair) for pair in merges]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    file = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": names[number], **flags} for number in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": merges,
        },
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(file))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"tokenizer_class": "LlamaTokenizer"} | config))
    return folder


@pytest.mark.parametrize("config", [{}, {"legacy": True}, {"legacy": False}, {"add_prefix_space": False}], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "mistral", None])
def test_a_llama_tokenizer_gives_the_ids_of_transformers(
    tmp_path: Path, model_type: str | None, config: dict[str, Any]
) -> None:
    folder = llama(tmp_path / "model", **config)
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    found = ours(folder)
    if model_type is not None:
        assert found == theirs(folder)
    as_it_is = _native.ChatEncoder((folder / "tokenizer.json").read_bytes())
    if model_type != "mistral":
        assert found[2] != as_it_is.encode(TEXTS[2])[0]


def test_a_byte_level_file_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    file = json.loads((folder / "tokenizer.json").read_text())
    file |= {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    }
    (folder / "tokenizer.json").write_text(json.dumps(file))
    assert load_tokenizer(folder).tokenizer_json == (folder / "tokenizer.json").read_bytes()


# --- tekken -----------------------------------------------------------------------------------------------------------


def tekken(folder: Path, **config: Any) -> Path:
    """A folder with a tekken.json and nothing else."""
    tokens = [bytes([byte]) for byte in range(256)] + [
        b"th",
        b"the",
        b"mi",
        b"ll",
        b"mill",
        b" mill",
        b" the",
        b"\xe4\xb8",
    ]
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    specials = [
        {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(["<unk>", "<s>", "</s>"])
    ]
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    settings = {"pattern": pattern, "default_vocab_size": 268, "default_num_special_tokens": 5, "version": "v3"}
    folder.mkdir(parents=True)
    file = {"config": settings | config, "vocab": entries, "special_tokens": specials}
    (folder / "tekken.json").write_text(json.dumps(file))
    return folder


def test_the_digest_sees_a_family_that_makes_another_tokenizer_of_the_same_files(tmp_path: Path) -> None:
    """Equal files, other ids: tokens made for one family are not up to date for the other."""
    folder = llama(tmp_path / "model")
    digests: dict[str, set[str]] = {}
    for family in ("llama", "mistral", "qwen2", "idefics"):
        (folder / "config.json").write_text(json.dumps({"model_type": family, "hidden_size": len(digests)}))
        digests.setdefault(json.dumps(ours(folder)), set()).add(tokenizer_digest(folder))
    assert len(digests) == 2 and [len(same) for same in digests.values()] == [1, 1]
    assert len(set.union(*digests.values())) == 2


def test_tekken_alone_is_a_tokenizer(tmp_path: Path) -> None:
    folder = tekken(tmp_path / "model")
    converter = pytest.importorskip("transformers.integrations.mistral.tokenizer")
    expected = converter.MistralConverter(str(folder / "tekken.json")).converted()
    assert ours(folder) == [expected.encode(text, add_special_tokens=False).ids for text in TEXTS]
    model = load_tokenizer(folder)
    assert model.special_texts["eos_token"] == "</s>"
    file = json.loads(model.tokenizer_json)
    assert (file["added_tokens"][4]["content"], len(file["model"]["vocab"])) == ("<SPECIAL_4>", 5 + 263)
    assert choose_tokenizer_files(["tekken.json", "config.json"]) == ["tekken.json"]
    assert choose_tokenizer_files(["tekken.json", "tokenizer.json"]) == ["tokenizer.json"]
    before = tokenizer_digest(folder)
    (folder / "tekken.json").write_text((folder / "tekken.json").read_text() + " ")
    assert tokenizer_digest(folder) != before


@pytest.mark.parametrize("missing", ["special_tokens", "vocab", "config"])
def test_a_damaged_tekken_is_refused(tmp_path: Path, missing: str) -> None:
    folder = tekken(tmp_path / "model")
    file = json.loads((folder / "tekken.json").read_text())
    del file[missing]
    (folder / "tekken.json").write_text(json.dumps(file))
    with pytest.raises(ArtifactError, match=rf"not a tekken.*KeyError: '{missing}'") as refused:
        load_tokenizer(folder)
    assert refused.value.code == 65


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["tokenizer.model"], "pip install sentencepiece protobuf && python -c"),
        (["vocab.json", "merges.txt"], "its vocabulary becomes one with: python -c"),
        (["vocab.txt"], "its vocabulary becomes one with: python -c"),
        ([], "give the folder of a model with its tokenizer"),
    ],
)
def test_other_tokenizers_are_refused_with_what_converts_them(tmp_path: Path, names: list[str], remedy: str) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(ArtifactError, match="no tokenizer") as refused:
        load_tokenizer(tmp_path)
    assert remedy in str(refused.value)
    assert refused.value.code == 66


def test_the_remedy_for_a_vocabulary_and_merges_works(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "model"
    folder.mkdir()
    letters = sorted(byte_letters())
    vocab = {letter: number for number, letter in enumerate([*letters, "th", "the"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert ours(folder)[0] == [vocab["the"], *(vocab[letter] for letter in "Ġmill")]
