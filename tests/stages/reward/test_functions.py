"""Built-in reward functions on answers as models give them."""

import pytest

from postmill.stages.reward.functions import BUILT_IN, reasoning_gym
from postmill.stages.reward.row import Row

OPTIONS = {"solution": "solution", "max_answer_tokens": 100, "soft_tokens": 20}


def score(name: str, output: str, *, num_tokens: int = 10, **columns):
    row = Row(
        output=output,
        messages=[],
        transcript=[],
        finish="stop",
        num_tokens=num_tokens,
        sample=0,
        columns=columns,
        seed=0,
    )
    return BUILT_IN[name][0](row, OPTIONS)


@pytest.mark.parametrize(
    ("output", "solution", "expected"),
    [
        ("The sum is 1,018.", "1018", 1.0),
        ("18.5 sacks", "18", 0.0),
        ("about 3.18", "18", 0.0),
        ("it is -18", "18", 0.0),
        ("a share of 1/5", "5", 0.0),
        ("first 7, then 42", "42", 1.0),
        ("first 42, then 7", "42", 0.0),
        ("<think>41 or 42</think><answer>42</answer>", "42", 1.0),
        ("no number", "42", 0.0),
        ("5", "five", None),
    ],
)
def test_number_reads_the_last_whole_number(output, solution, expected):
    assert score("number", output, solution=solution) == expected


def test_without_a_solution_there_is_no_score():
    assert [score(name, "7") for name in ("exact", "contains", "number", "cosine", "iou", "anls")] == [None] * 6


@pytest.mark.parametrize(
    ("output", "solution", "expected"),
    [
        ("[0, 0, 10, 10]", "[0, 0, 10, 10]", 1.0),
        ("[0, 0, 10, 10]", "[5, 0, 15, 10]", 1 / 3),
        ("<think>[0, 0, 1, 1]</think>[0, 0, 10, 5]", "[0, 0, 10, 10]", 0.5),
        ("[10, 0, 0, 10]", "[0, 0, 10, 10]", 0.0),
        ("[0, 0, 10", "[0, 0, 10, 10]", 0.0),
        ("[20, 20, 30, 30]", "[0, 0, 10, 10]", 0.0),
        ("[0, 0, 10, 10]", "nowhere", None),
    ],
)
def test_iou_is_what_boxes_share(output, solution, expected):
    assert score("iou", output, solution=solution) == pytest.approx(expected)


def test_anls_is_the_likeness_of_letters():
    assert score("anls", "Total: 42.50", solution="total: 42.58") == pytest.approx(11 / 12)
    assert score("anls", "nothing", solution="total: 42.58") == 0.0


def test_exact_and_contains():
    assert score("exact", " Lamp ", solution="lamp") == 1.0
    assert score("exact", "the lamp", solution="lamp") == 0.0
    assert score("contains", "the lamp.", solution="lamp") == 1.0
    assert score("contains", "lamps", solution="lamp") == 0.0


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("<think>a\nb</think>\n<answer>7</answer>", 1.0),
        ("<think>a</think><answer>7</answer> and more", 0.0),
        ("<think>a</think><think>b</think><answer>7</answer>", 0.0),
        ("<answer>7</answer>", 0.0),
    ],
)
def test_format_is_one_thought_and_one_answer(output, expected):
    assert score("format", output) == expected


def test_repetition_is_the_share_of_grams_said_again():
    assert score("repetition", "a b c d e") == 0.0
    assert score("repetition", "a b c a b c") == pytest.approx(-1 / 4)  # abc bca cab abc: one of four again
    assert score("repetition", "a") == 0.0


def test_cosine_runs_between_its_ends():
    assert score("cosine", "7", num_tokens=0, solution="7") == pytest.approx(1.0)
    assert score("cosine", "7", num_tokens=50, solution="7") == pytest.approx(0.75)
    assert score("cosine", "7", num_tokens=100, solution="7") == pytest.approx(0.5)
    assert score("cosine", "8", num_tokens=0, solution="7") == pytest.approx(-0.5)
    assert score("cosine", "8", num_tokens=100, solution="7") == pytest.approx(0.0)


def test_soft_overlong_is_the_formula_of_dapo():
    assert [score("soft_overlong", "", num_tokens=n) for n in (10, 80, 90, 100, 110)] == [0, 0, -0.5, -1, -1.5]


def test_react_format():
    assert score("react_format", "Thought: look\nAction: search\nAction Input: {}") == 1.0
    assert score("react_format", "Thought: known\nFinal Answer: 7") == 1.0
    assert score("react_format", "Action: search\nAction Input: {}") == 0.0


CALL = {"name": "calc", "arguments": {"x": "2*3"}}
OTHER = {"name": "look", "arguments": {"at": 1}}


def told(*calls, output=""):
    """A transcript with these calls, one a turn."""
    return [
        {"role": "assistant", "content": output, "tool_calls": [{"type": "function", "function": call}]}
        for call in calls
    ]


@pytest.mark.parametrize(
    ("calls", "solution", "expected"),
    [
        ([CALL], CALL, 1.0),
        ([OTHER, CALL], [CALL, OTHER], 1.0),
        ([CALL, CALL], [CALL], 0.5),
        ([CALL], [CALL, OTHER], 0.5),
        ([{"name": "calc", "arguments": {"x": "2*4"}}], [CALL], 0.0),
        ([CALL], '{"function": {"name": "calc", "arguments": "{\\"x\\": \\"2*3\\"}"}}', 1.0),
        ([], [], 1.0),
        ([], [CALL], 0.0),
        ([CALL], "just text", None),
        ([CALL], None, None),
    ],
)
def test_calls_are_compared_by_name_and_arguments(calls, solution, expected):
    row = Row(
        output="", messages=[], transcript=told(*calls), finish="stop", num_tokens=1, sample=0,
        columns={"solution": solution}, seed=0,
    )  # fmt: skip
    assert BUILT_IN["tool_calls"][0](row, OPTIONS) == expected


def test_calls_are_read_from_the_text_where_none_were_run():
    text = 'I will. <tool_call>{"name": "calc", "arguments": {"x": "2*3"}}</tool_call>'
    assert score("tool_calls", text, solution=[CALL]) == 1.0
    assert score("tool_calls", "6", solution=[CALL]) == 0.0


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ('Thought: look\nAction: calc\nAction Input: {"x": 1, "y": [2]}\nObservation:', 1.0),
        ('Action: other\nAction Input: {}\nAction: calc\nAction Input: {"y": [2], "x": 1}', 1.0),
        ('Action: calc\nAction Input: {"x": 2, "y": [2]}', 0.0),
        ('Action: calc2\nAction Input: {"x": 1, "y": [2]}', 0.0),
        ("Action: calc\nAction Input: x = 1", 0.0),
        ("nothing", 0.0),
    ],
)
def test_a_react_step_is_compared_with_the_solutions(output, expected):
    assert score("toolbench", output, solution='Action: calc\nAction Input: {"x": 1, "y": [2]}') == expected


def test_scorers_of_reasoning_gym_are_its_own():
    gym = pytest.importorskip("reasoning_gym", reason="pip install reasoning-gym")
    data = gym.create_dataset("chain_sum", size=3, seed=1)
    judge = reasoning_gym("chain_sum")
    for entry in data:
        for answer in (entry["answer"], "0", "no number"):
            row = Row(
                output=answer, messages=[], transcript=[], finish="stop", num_tokens=1, sample=0,
                columns={"answer": entry["answer"], "metadata": entry["metadata"]}, seed=0,
            )  # fmt: skip
            assert judge(row) == data.score_answer(answer, entry)
