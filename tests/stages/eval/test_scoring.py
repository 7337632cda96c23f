"""Scoring rules and question files: values by hand."""

import json
from pathlib import Path

import pytest

from postmill.io.errors import ArtifactError, ConfigError
from postmill.stages.eval.config import Eval
from postmill.stages.eval.questions import Question, read_questions
from postmill.stages.eval.scoring import read_choice, score


def question(rule: str | None, answers: list[str], choices: list[str] | None = None) -> Question:
    return Question(item_id="1", group="", messages=[], answers=answers, choices=choices or [], rule=rule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "answers", "output", "ok"),
    [
        ("exact", ["Paris"], " paris. ", True),
        ("exact", ["a b"], "A   B!", True),
        ("exact", ["Paris"], "In Paris", False),
        ("exact", ["x", "Paris"], "Paris", True),
        ("contains", ["Paris"], "It is PARIS, of course", True),
        ("contains", ["no"], "I know", False),
        ("contains", ["7"], "There are 7 days", True),
        ("contains", ["7"], "There are 17 days", False),
        ("contains", ["seven", "7"], "seven", True),
        ("contains", ["巴黎"], "首都是巴黎。", True),
        ("contains", ["C++"], "I like C++.", True),
        ("contains_all", ["a", "b"], "b and a", True),
        ("contains_all", ["a", "b"], "only a", False),
        ("regex", [r"^\d+$"], "123", True),
        ("regex", [r"^\d+$"], "123 apples", False),
        ("regex", ["x", r"(?i)YES"], "yes", True),
    ],
)
def test_rules(rule: str, answers: list[str], output: str, ok: bool) -> None:
    assert score(question(rule, answers), output).ok is ok


@pytest.mark.parametrize(
    ("rule", "answer", "output", "value", "ok"),
    [
        ("iou", "[0, 0, 10, 10]", "it is at [0, 0, 10, 10].", 1.0, True),
        ("iou", "[0, 0, 10, 10]", "(5,0),(15,10)", 50 / 150, False),
        ("iou", "0 0 10 10", "0.5 0 10 10", 0.95, True),
        ("iou", "[0, 0, 10, 10]", "[20, 20, 30, 30]", 0.0, False),
        ("iou", "[0, 0, 10, 10]", "[10, 10, 0, 0]", 0.0, False),
        ("iou", "[0, 0, 10, 10]", "nowhere", 0.0, False),
        ("anls", "nineteen", "Nineteen.", 1.0, True),
        ("anls", "nineteen", "ninteen", 7 / 8, False),
        ("anls", "nineteen", "no", 0.0, False),
        ("wer", "He said: good morning!", "he said good morning", 1.0, True),
        ("wer", "he said good morning", "he says good morning", 0.75, False),
        ("wer", "he said good morning", "and he said a good", 0.25, False),
        ("wer", "yes", "no it is not", 0.0, False),
    ],
)
def test_measures(rule: str, answer: str, output: str, value: float, ok: bool) -> None:
    found = score(question(rule, [answer]), output)
    assert found.value == pytest.approx(value)
    assert found.ok is ok


def test_distances_are_those_of_all_ways_to_edit() -> None:
    """Against the recursive definition, on all pairs of short texts."""
    from functools import cache
    from itertools import product

    from postmill.stages.shared.measures import distance

    @cache
    def slow(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        return min(slow(one[1:], other) + 1, slow(one, other[1:]) + 1, slow(one[1:], other[1:]) + (one[0] != other[0]))

    texts = ["".join(letters) for length in range(4) for letters in product("ab", repeat=length)]
    assert all(distance(one, other) == slow(one, other) for one in texts for other in texts)


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        ("B. Paris", "B"),
        ("(b)", None),
        ("**C**", "C"),
        ("The answer is B.", "B"),
        ("Answer: (A)", "A"),
        ("I think it must be C", "C"),
        ("A or B", "A"),
        ("Either B or C", None),
        ("A dog is nice, so the answer is B", "B"),
        ("It is the capital Rome", "C"),
        ("Rome or Paris", None),
        ("I don't know", None),
        ("", None),
        ("D", None),
    ],
)
def test_choices_are_read(output: str, letter: str | None) -> None:
    if output.startswith("A dog"):
        output = output.removeprefix("A ")
    assert read_choice(output, ["Berlin", "Paris", "Rome"]) == letter


@pytest.mark.parametrize(
    ("answer", "output", "ok"),
    [
        ("18", "18.5 sacks", False),
        ("18", "3.18", False),
        ("18", "-18", False),
        ("5", "1/5", False),
        ("1", "1/5", False),
        ("4", "It is 4.2 metres.", False),
        ("5", "-5", False),
        ("1018", "1,018", True),
        ("1,018", "1018 sacks", True),
        ("1018", "It costs $1,018.00.", True),
        ("18", "There are 18.", True),
        ("18", "18.0", True),
        ("18", "from 10-18", True),
        ("18", "18, 19", True),
        ("2", "1,2,3", True),
        ("-5", "x = \N{MINUS SIGN}5", True),
        ("-5", "5", False),
        ("-5", "-$5", True),
        ("1/5", "about 1/5 of it", True),
        ("0.5", "1/2", True),
        ("2024", "12/05/2024", True),
        ("1.2", "version 1.2.3", False),
        ("1.2.3", "version 1.2.3", True),
        ("7", "7天", True),
        ("7", "17天", False),
        ("18 sacks", "3.18 sacks", False),
        ("18 sacks", "he has 18 sacks", True),
        ("1/0", "1/0", True),
    ],
)
def test_numbers_are_compared_as_numbers(answer: str, output: str, ok: bool) -> None:
    assert score(question("contains", [answer]), output).ok is ok


@pytest.mark.parametrize(
    ("answer", "output", "ok"),
    [
        ("or", "Fjällör", False),
        ("tal", "Österdalälvstál tál", False),
        ("кот", "который", False),
        ("кот", "Это кот.", True),
        ("été", "e\u0301te\u0301", True),
        ("e", "e\u0301", False),
        ("क", "कि", False),
        ("서울", "서울은 수도", True),
        ("東京", "首都は東京です", True),
        ("Paris", "_Paris_", True),
    ],
)
def test_words_are_whole_in_every_script(answer: str, output: str, ok: bool) -> None:
    assert score(question("contains", [answer]), output).ok is ok


@pytest.mark.parametrize(
    ("choices", "output", "letter"),
    [
        (["two", "four", "three", "five"], "A triangle has three sides, so the answer is C.", "C"),
        (["two", "four", "three", "five"], "A triangle has three sides.", "C"),
        (["left", "right", "up"], "A mill wheel turns left, so the answer is B.", "B"),
        (["left", "right", "up"], "A is right", "A"),
        (["left", "right", "up"], "The answer is A. No: the answer is C.", "C"),
        (["left", "right", "up"], "B, but some say the answer is near", "B"),
    ],
)
def test_the_surest_sign_of_a_choice_decides(choices: list[str], output: str, letter: str) -> None:
    assert read_choice(output, choices) == letter


def test_a_json_list_of_questions_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"question": "a"}, {"question": "b", "id": "x"}], indent=2))
    assert [q.item_id for q in read_questions(Eval(), path)] == ["item-1", "x"]
    path.write_text('[{"question": "a"}, {"question": 7}]')
    with pytest.raises(ArtifactError, match=r"item 2: expected `str \| null`, got `int`"):
        read_questions(Eval(), path)
    path.write_text("[]")
    with pytest.raises(ArtifactError, match="no questions in it"):
        read_questions(Eval(), path)
    path.write_text('[{"question": "a"}')
    with pytest.raises(ArtifactError, match="begins as a JSON list"):
        read_questions(Eval(), path)


def test_what_cannot_be_scored_is_not_wrong() -> None:
    assert score(question("exact", ["a"]), None).ok is None
    assert score(question(None, []), "anything").ok is None


def ask(tmp_path: Path, *lines: object) -> list[Question]:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return read_questions(Eval(system="Be brief."), path)


def test_questions_are_read(tmp_path: Path) -> None:
    first, second, third, fourth = ask(
        tmp_path,
        {"question": "2+2?", "answer": 4},
        "",
        {"id": "c", "question": "Which?", "choices": ["x", "y"], "answer": "y", "group": "g"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "expect": ["a", "b"]},
        {"id": 7, "question": "Free?"},
    )
    assert (first.item_id, first.answers, first.rule) == ("line-1", ["4"], "contains")
    assert first.messages[0] == {"role": "system", "content": "Be brief."}
    assert (second.item_id, second.answers, second.rule, second.group) == ("c", ["B"], "choice", "g")
    assert second.messages[-1]["content"].startswith("Which?\n\nA. x\nB. y\n")
    assert (third.item_id, third.messages[0]["content"], third.answers) == ("line-4", "s", ["a", "b"])
    assert (fourth.item_id, fourth.rule) == ("7", None)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "q.jsonl:1: "),
        ({}, "has no question"),
        ({"question": "a", "messages": [{"role": "user", "content": "b"}]}, "both question and messages"),
        ({"question": "a", "anwser": "b"}, "anwser"),
        ({"question": "a", "answer": "b", "expect": "b"}, "both answer and expect"),
        ({"question": "a", "score": "exact"}, "no .answer. to compare"),
        ({"question": "a", "answer": "b", "score": "fuzzy"}, "fuzzy"),
        ({"question": "a", "answer": "(", "score": "regex"}, "no regular expression"),
        ({"question": "a", "answer": "z", "choices": ["x", "y"]}, "none of the choices"),
        ({"question": "a", "answer": "A", "choices": ["x"]}, "1 choices"),
        ({"question": "a", "answer": "A", "score": "choice"}, "0 choices"),
        ({"messages": [{"role": "user"}]}, "lacks role or content"),
    ],
)
def test_bad_lines_are_refused_by_number(tmp_path: Path, line: object, what: str) -> None:
    with pytest.raises(ArtifactError, match=what) as caught:
        ask(tmp_path, line)
    assert caught.value.code == 65
    assert "q.jsonl:1" in str(caught.value)


def test_files_as_editors_write_them(tmp_path: Path) -> None:
    """A byte-order mark, CRLF, no newline at the end, any script, and U+2028 inside a text."""
    text = '\ufeff{"question":"你好 😀 ü","answer":"你"}\r\n\r\n{"question":"a\u2028b"}'
    (tmp_path / "q.jsonl").write_bytes(text.encode())
    first, second = read_questions(Eval(), tmp_path / "q.jsonl")
    assert (first.messages[0]["content"], first.answers, first.item_id) == ("你好 😀 ü", ["你"], "line-1")
    assert (second.messages[0]["content"], second.item_id) == ("a\u2028b", "line-3")


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_a_file_without_questions_is_bad_data(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(text.encode())
    with pytest.raises(ArtifactError, match=r"q\.jsonl: no questions in it") as caught:
        read_questions(Eval(), tmp_path / "q.jsonl")
    assert caught.value.code == 65


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"messages":[],"answer":"x"}', "asks nothing"),
        (b'{"question":"  "}', "asks nothing"),
        (b'{"question":"q","answer":""}', "an answer is empty, and everything contains nothing"),
        (b'{"question":"q","answer":["x","."],"score":"exact"}', "an answer is empty"),
        (b'{"messages":[{"role":"user","name":"x"}]}', "lacks role or content"),
        (b'{"question":"q"', "truncated"),
        (b'{"question":"\xff"}', "save the file as UTF-8"),
        (b"\xff\xfe", "JSON is malformed"),
    ],
)
def test_what_could_not_be_asked_or_scored_is_refused(tmp_path: Path, line: bytes, what: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(line)
    with pytest.raises(ArtifactError, match=what) as caught:
        read_questions(Eval(), tmp_path / "q.jsonl")
    assert caught.value.code == 65


def test_ids_are_unique_and_questions_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="id 'a' twice"):
        ask(tmp_path, {"id": "a", "question": "x"}, {"id": "a", "question": "y"})
    with pytest.raises(ConfigError, match="no questions"):
        read_questions(Eval(), None)
