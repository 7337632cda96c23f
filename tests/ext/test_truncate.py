"""`--truncation proportional`: prompt and answer lose the same share, as in LLaMA-Factory; the ledger says so.

Lengths are worked out by hand from `infer_seqlen` of LLaMA-Factory 0.9. A chat of the tiny encoder is
`<bos><user>QUESTION<end><bot>ANSWER<end>`, a token for each letter here: a prompt has 4 more than its question.
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoder import chat, encoder, run, shown

pytest.importorskip("postmill._native", reason="native module not built")


@pytest.mark.parametrize(
    ("question", "answer", "prompt_kept", "answer_kept"),
    [
        (20, 10, 12, "y" * 6),  # 24 and 11 of 20: int(20 * 11 / 35) is 6
        (30, 3, 14, "yyy<end>"),  # an answer shorter than half of the limit stays whole
        (1, 30, 1, "y" * 15),  # so does a prompt
    ],
)
def test_prompt_and_answer_keep_their_starts(question: int, answer: int, prompt_kept: int, answer_kept: str) -> None:
    enc = encoder(max_length=20, truncation="proportional")
    [row], [line], counts = run(enc, chat("x" * question, "y" * answer))
    closed = "<end><bot>" if prompt_kept == question else ""
    assert shown(enc, row) == [("<bos><user>" + "x" * prompt_kept + closed, 0.0), (answer_kept, 1.0)]
    assert row["length"] == 20 and counts["kept"] == 0
    before = question + answer + 5
    assert [line[name] for name in ("action", "reason", "tokens_before", "tokens_after")] == [
        "truncated", "proportional", before, 20,
    ]  # fmt: skip


def test_both_sides_of_a_pair_keep_the_same_prompt() -> None:
    """14 and 21 of 20 for the longer answer: 8 and 12; the shorter one stays whole behind the same 8."""
    enc = encoder(max_length=20, truncation="proportional")
    rows, [line], _ = run(enc, chat("x" * 10, "y" * 20, rejected_response="zzz"))
    prompt = ("<bos><user>" + "x" * 6, 0.0)
    assert [shown(enc, row) for row in rows] == [[prompt, ("y" * 12, 1.0)], [prompt, ("zzz<end>", 1.0)]]
    assert line["reason"] == "proportional"


def test_a_pair_that_fits_and_a_text_without_a_prompt() -> None:
    enc = encoder(max_length=20, truncation="proportional")
    rows, ledger, counts = run(enc, chat("x" * 4, "y" * 11, rejected_response="zzz"))
    assert [row["length"] for row in rows] == [20, 12] and not ledger and counts["kept"] == 1
    [row], [line], _ = run(enc, {"text": "x" * 30})
    assert shown(enc, row) == [("x" * 20, 1.0)] and line["reason"] == "proportional"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet="abc\n", max_size=12), min_size=2, max_size=6), st.integers(1, 60))
def test_what_is_kept_is_the_row_with_holes(texts: list[str], limit: int) -> None:
    """Each question and answer in turn, the start of each; weights are those of the whole row; the ledger balances."""
    row = chat(*texts[: len(texts) // 2 * 2])
    made, ledger, counts = run(encoder(max_length=limit, truncation="proportional"), row)
    actions = [line["action"] for line in ledger]
    assert counts["rows_in"] == 1 == counts.get("kept", 0) + actions.count("dropped") + actions.count("truncated")
    whole = run(encoder(), row)[0][0]
    for kept in made:
        assert kept["length"] == min(limit, whole["length"])
        places = iter(targets(whole))
        assert all(pair in places for pair in targets(kept))  # a subsequence, with the same weights
        for turn in kept["turns"]:
            order = [turn[name] for name in ("start", "generated_start", "closing", "generated_end", "end")]
            assert order == sorted(order) and order[0] >= 0 and order[-1] <= kept["length"]


def targets(row: dict[str, Any]) -> list[tuple[int, float]]:
    weight = [0.0] * row["length"]
    for span in row["spans"]:
        weight[span["start"] : span["end"]] = [span["weight"]] * (span["end"] - span["start"])
    return list(zip(row["input_ids"], weight, strict=True))
