"""Agent metrics are those of EvalScope's `toolbench_static/eval.py`, on rows that are drawn here."""

import json
import random

import pytest

from postmill.stages.eval.agent import Row, agent_metrics, read_step
from postmill.stages.eval.config import Eval
from postmill.stages.eval.questions import read_questions
from postmill.stages.eval.scoring import score

TOOLS = ["find", "buy", "Finish", "get_weather", "list_items"]
WORDS = "the a cat sat on mat and then it went away . , none None some answer is 42 . yes no".split()  # noqa: SIM905

NAMES = ["rouge_l", "plan_em", "action_em", "easy_f1", "hard_f1", "f1", "hallucination_rate"]
# what evalscope 1.14.1 with rouge 1.0.1 gives for the rows of `draw(seed, 250)`, seeds 0 to 7
GOLDEN = [
    (
        0.3304473286742419,
        0.7295918367346939,
        0.6589147286821705,
        0.26506024096385544,
        0.2088235294117647,
        0.32056451612903225,
        0.044,
    ),
    (
        0.3355008398820675,
        0.7562189054726368,
        0.6277372262773723,
        0.25555555555555554,
        0.18953900709219854,
        0.3068922305764411,
        0.068,
    ),
    (
        0.4488505723000106,
        0.7307692307692307,
        0.6470588235294118,
        0.3263157894736842,
        0.20833333333333334,
        0.37022900763358785,
        0.016,
    ),
    (
        0.47310405395003896,
        0.7476190476190476,
        0.6985294117647058,
        0.2465753424657534,
        0.2176767676767677,
        0.3019083969465649,
        0.044,
    ),
    (
        0.35709876357070464,
        0.7843137254901961,
        0.6762589928057554,
        0.2631578947368421,
        0.2534313725490196,
        0.3447368421052632,
        0.044,
    ),
    (0.4128838286367161, 0.7512437810945274, 0.6962962962962963, 0.24, 0.29298245614035084, 0.35529715762273906, 0.036),
    (
        0.41825396610806864,
        0.7525252525252525,
        0.6344827586206897,
        0.21428571428571427,
        0.25555555555555554,
        0.3280575539568346,
        0.028,
    ),
    (
        0.3851535276133307,
        0.7810945273631841,
        0.6788321167883211,
        0.25925925925925924,
        0.3188888888888889,
        0.3913385826771653,
        0.04,
    ),
]


class Drawer:
    """Answers right, wrong and broken."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def text(self):
        return " ".join(self.random.choice(WORDS) for _ in range(self.random.randint(1, 14)))

    def arguments(self):
        kind = self.random.random()
        for most, text in ((0.2, "{}"), (0.3, "not json"), (0.35, "[]"), (0.38, "5"), (0.41, '"text"')):
            if kind < most:
                return text
        keys = self.random.sample(["a", "b", "c", "city"], self.random.randint(1, 3))
        return json.dumps({key: self.random.choice([1, 2, "x", None, [1]]) for key in keys})

    def finish(self):
        kind = self.random.random()
        if kind < 0.15:
            return "Action: Finish\nAction Input: broken"
        if kind < 0.3:
            return 'Action: Finish\nAction Input: {"return_type": "give_up_and_restart"}'
        if kind < 0.4:
            return 'Action: Finish\nAction Input: {"return_type": "give_answer"}'
        answer = self.random.choice([self.text(), self.text(), self.text(), "", ".", ","])
        if not [part for part in answer.split(".") if part] and answer.strip() not in ("", ".", ","):
            answer = "yes"  # the package cannot score an answer without any sentence
        given = {"return_type": "give_answer", "final_answer": answer}
        return "Thought: done\nAction: Finish\nAction Input: " + json.dumps(given)

    def call(self):
        names = TOOLS[:2] + TOOLS[3:]
        names = names + (["unknown_tool"] if self.random.random() < 0.3 else [])
        names = names + (["invalid_hallucination_function_name"] if self.random.random() < 0.2 else [])
        name = self.random.choice(names)
        text = f"Thought: {self.text()}\nAction: {name}\n"
        if self.random.random() < 0.9:
            text += f"Action Input: {self.arguments()}"
        if self.random.random() < 0.1:
            text += f"\nAction: {self.random.choice(TOOLS)}\nAction Input: {self.arguments()}"
        return text

    def any(self):
        kind = self.random.random()
        return self.finish() if kind < 0.35 else self.call() if kind < 0.92 else self.text()

    def row(self):
        target = self.any()
        if self.random.random() < 0.3:
            output = target
        elif self.random.random() < 0.4 and "Finish" not in target:
            output = target.split("Action Input:")[0] + "Action Input: " + self.arguments()
        else:
            output = self.any()
        return Row(target, output, [name for name in TOOLS if self.random.random() < 0.9])


def draw(seed, count):
    drawer = Drawer(seed)
    return [drawer.row() for _ in range(count)]


@pytest.mark.parametrize("seed", range(8))
def test_numbers_are_those_of_the_published_code(seed):
    found = agent_metrics(draw(seed, 250))
    assert [found[name] for name in NAMES] == pytest.approx(GOLDEN[seed], abs=1e-12)


def test_a_number_without_a_case_is_none():
    found = agent_metrics([Row("Action: find\nAction Input: {}", "Action: find\nAction Input: {}", ["find"])])
    assert (found["plan_em"], found["action_em"], found["easy_f1"]) == (1.0, 1.0, 1.0)
    assert found["rouge_l"] is None and found["hard_f1"] is None
    assert agent_metrics([])["hallucination_rate"] is None


def test_the_last_action_of_a_text_counts():
    said = read_step('Action: one\nAction Input: {}\nAction: two\nAction Input: {"a": 1}')
    assert (said.plan, said.action, said.arguments) == ("call", "two", '{"a": 1}')
    assert read_step("hello").action == "none"
    answer = 'Action: Finish\nAction Input: {"return_type": "give_answer", "final_answer": "."}'
    assert (read_step(answer).plan, read_step(answer).answer) == ("finish", "None")
    assert read_step("Action: Finish\nAction Input: [1]").plan == "give up"


def test_questions_can_be_scored_as_an_agents(tmp_path):
    right = "Action: find\nAction Input: {}"
    lines = [{"question": "what?", "answer": right, "score": "agent", "tools": ["find", {"name": "buy"}]}]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (question,) = read_questions(Eval(), tmp_path / "ask.jsonl")
    assert question.tools == ["find", "buy"]
    assert score(question, "Action: find\nAction Input: x").ok is True
    assert score(question, "Action: buy\nAction Input: {}").ok is False
