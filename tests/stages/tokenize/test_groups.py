"""`tokenize --for embed` and `--for rank`: the ids of the tokenizer's own call, in groups; bad ones are refused."""

import json

import pyarrow as pa
import pytest

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("postmill._native", reason="native module not built")

from postmill.io.errors import ArtifactError, StageError  # noqa: E402
from postmill.io.ledger import LEDGER  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.tokenize.config import STAGE, Tokenize  # noqa: E402

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *["what", "is", "rust", "a", "metal", "film", "language", "the", "best"]]
ROWS = [
    {"query": "what is rust", "positive": "rust is a language", "negatives": ["rust is metal", "a film"], "id": 7},
    {"anchor": "the film", "pos": ["the best film"], "negative_1": "metal", "negative_2": "rust", "label": 0.5},
    {"sentence1": "rust", "sentence2": "metal", "label": True},
]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.add_special_tokens(WORDS[:4])
    made.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def made(tmp_path, model, rows, **options):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"data": [str(data)], "model": [str(model)]}
    run_stage(STAGE, Tokenize(**options), given, tmp_path / "out", Options(replace=True))
    return pa.ipc.open_file(tmp_path / "out" / "tokens.arrow").read_all().to_pylist()


def test_texts_are_rows_of_a_group_as_the_tokenizer_encodes_them(tmp_path, model):
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    rows = made(tmp_path, model, ROWS, for_="embed")
    texts = [
        ("what is rust", 0),
        ("rust is a language", 2),
        ("rust is metal", 1),
        ("a film", 1),
        ("the film", 0),
        ("the best film", 2),
        ("metal", 1),
        ("rust", 1),
        ("rust", 0),
        ("metal", 2),
    ]
    assert [(row["input_ids"], row["side"]) for row in rows] == [(tokenizer.encode(t).ids, side) for t, side in texts]
    assert [len({row["pair_id"] for row in rows[a:b]}) for a, b in ((0, 4), (4, 8), (8, 10))] == [1, 1, 1]
    assert len({row["pair_id"] for row in rows}) == 3
    assert [row["label"] for row in rows] == [None] * 4 + [0.5] * 4 + [1.0] * 2
    assert rows[0]["extra"] == '{"id":7}'


def test_a_query_is_encoded_with_each_of_its_texts(tmp_path, model):
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    many = {"query": "what is rust", "positives": ["rust is metal", "rust is a language"], "negatives": "a film"}
    rows = made(tmp_path, model, [many], for_="rank")
    texts = ["rust is metal", "rust is a language", "a film"]
    assert [row["input_ids"] for row in rows] == [tokenizer.encode("what is rust", text).ids for text in texts]
    assert [row["side"] for row in rows] == [2, 2, 1]


def test_long_texts_keep_the_last_special_token_or_leave_with_their_group(tmp_path, model):
    rows = made(tmp_path, model, ROWS, for_="embed", max_length=4, truncation="right")
    assert rows[1]["input_ids"] == [1, WORDS.index("rust"), WORDS.index("is"), 2]
    assert max(row["length"] for row in rows) == 4
    kept = made(tmp_path, model, ROWS, for_="embed", max_length=4)
    assert len(kept) == 2
    ledger = pa.ipc.open_file(tmp_path / "out" / LEDGER).read_all().to_pylist()
    assert [(line["line"], line["reason"]) for line in ledger] == [(1, "too_long"), (2, "too_long")]


def test_text_to_learn_from_has_the_frame_of_an_encoder_around_it(tmp_path, model):
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    [row] = made(tmp_path, model, [{"text": "rust is a metal", "label": 1}])
    assert row["input_ids"] == tokenizer.encode("rust is a metal").ids


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"positive": "rust"},
            "expected one query, a text in a column like query, anchor, question, sentence1",
        ),
        ({"query": "rust"}, "expected one text that fits the query in a column like positive"),
        ({"query": "rust", "positive": ["a", "film"]}, "expected one text that fits the query .* found 2"),
        ({"query": "rust", "anchor": "film", "positive": "a"}, "query, anchor could each be the query"),
        ({"query": "rust", "positive": {"a": 1}}, "expected a text, got an object"),
        ({"query": "rust", "positive": ""}, "the text is empty"),
    ],
)
def test_what_is_no_group_is_refused_with_its_place(tmp_path, model, row, message):
    with pytest.raises((ArtifactError, StageError), match=message) as caught:
        made(tmp_path, model, [ROWS[0], row], for_="embed")
    assert caught.value.code == 65
    assert "rows.jsonl:2" in str(caught.value)


def test_a_text_of_one_token_leaves_alone_or_says_why_its_group_goes(tmp_path, model):
    bare = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    bare.post_processor = tokenizers.processors.Sequence([])
    bare.save(str(model / "tokenizer.json"))
    (model / "tokenizer_config.json").write_text("{}")
    rows = [
        {"query": "what is rust", "positive": "a language", "negatives": ["rust", "a film"]},
        {"query": "rust", "positive": "a language"},
        {"query": "a film", "positive": "metal"},
        {"query": "the film", "positive": "a film"},
    ]
    made_rows = made(tmp_path, model, rows, for_="embed")
    assert [row["side"] for row in made_rows] == [0, 2, 1, 0, 2]
    ledger = pa.ipc.open_file(tmp_path / "out" / LEDGER).read_all().to_pylist()
    assert [(line["line"], line["action"], line["reason"]) for line in ledger] == [
        (1, "truncated", "one_token_text"),
        (2, "dropped", "one_token_text"),
        (3, "dropped", "one_token_text"),
    ]
