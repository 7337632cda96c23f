"""Tasks that ask for a text: code that has to pass tests, instructions about form, answers in words."""

import importlib.util
import json
import random
import subprocess
from math import comb
from pathlib import Path

import pytest

from postmill.io.errors import ArtifactError, ConfigError
from postmill.stages.eval.tasks.code import mark_programs, pass_at_k
from postmill.stages.eval.tasks.ifeval import judged_rules, mark_rules
from postmill.stages.eval.tasks.metrics import summary
from postmill.stages.eval.tasks.overlap import corpus, rouge, word_f1
from postmill.stages.eval.tasks.prompts import make_items
from postmill.stages.eval.tasks.task import load_task
from postmill.stages.shared.sandbox.run import missing

ROOT = Path(__file__).parents[3]
LM_EVAL = ROOT / ".cache" / "engines" / "lm-eval" / "bin" / "python"
KIND = "weak" if missing("strong") else "strong"

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """The sum."""\n',
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "def double(n):\r\n  return 2 * n",
    "test_list": ["assert double(1) == 2", "assert double(0) == 0", "assert double(-3) == -6"],
}


def items(name: str, rows: list[dict], fewshot: int | None = None):
    task = load_task(name)
    return task, make_items(task, {"test": rows}, fewshot=task.fewshot.count if fewshot is None else fewshot, limit=0)


def programs(name: str, row: dict, texts: list[str], ks: tuple[int, ...] = (1,), time_s: float = 10.0):
    task, found = items(name, [row])
    (marks,) = mark_programs(task, found, [texts], ks=ks, kind=KIND, time_s=time_s)
    return {mark.metric: mark.value for mark in marks}, marks[0].said.split("; ")


def test_code_passes_its_tests_or_not():
    texts = [
        "    return a + b\n",
        "    return a - b\n",
        "    return a +\n",
        "    exit(0)\n",
        "    import os; os._exit(0)\n",
        "    while True: pass\n",
        "    return open('/etc/passwd') and a + b if False else sum([a, b])\n",
    ]
    values, said = programs("humaneval", HUMANEVAL, texts, (1, 5), time_s=2.0)
    assert [each.split(":")[0] for each in said] == [
        "passed",
        "failed",
        "failed",
        "left before its tests",
        "left before its tests",
        "timeout",
        "passed",
    ]
    assert said[1] == "failed: AssertionError" and "SyntaxError" in said[2]
    assert values == {"pass@1": pytest.approx(2 / 7), "pass@5": pytest.approx(1 - comb(5, 5) / comb(7, 5))}


def test_mbpp_shows_three_and_runs_three_tests():
    _, (item,) = items("mbpp", [MBPP])
    parts = item.context.split("\n\n")
    assert item.context.count("[DONE]") == 3 and item.context.endswith("assert double(-3) == -6\n[BEGIN]\n")
    assert parts[1].startswith("assert similar_elements((3, 4, 5, 6)") and "return (res) \n[DONE]" in parts[1]
    assert programs("mbpp", MBPP, ["def double(n):\n  return n + n\n"])[0] == {"pass@1": 1.0}
    assert programs("mbpp", MBPP, ["def double(n):\n  return n * n\n"])[0] == {"pass@1": 0.0}


@pytest.mark.parametrize(("count", "passed", "k"), [(1, 0, 1), (5, 2, 1), (10, 3, 4), (10, 7, 4), (6, 6, 6), (6, 0, 6)])
def test_pass_at_k_is_the_share_of_draws_that_have_a_pass(count, passed, k):
    from itertools import combinations

    draws = list(combinations([True] * passed + [False] * (count - passed), k))
    assert pass_at_k(count, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def ifeval(names: list[str], kwargs: list[dict], prompt: str = "Do it.") -> object:
    _, (item,) = items("ifeval", [{"key": 1, "prompt": prompt, "instruction_id_list": names, "kwargs": kwargs}])
    return item


def test_ifeval_has_four_numbers():
    comma = ifeval(["punctuation:no_comma", "detectable_format:title"], [{}, {"num_words": None}])
    strict = {mark.metric: (mark.value, mark.parts) for mark in mark_rules(comma, "<<A title>>\nno marks here")}
    assert strict == {
        "prompt_level_strict_acc": (1.0, []),
        "inst_level_strict_acc": (1.0, [1.0, 1.0]),
        "prompt_level_loose_acc": (1.0, []),
        "inst_level_loose_acc": (1.0, [1.0, 1.0]),
    }
    # a first line that does not belong to the answer is forgiven, loosely
    found = {mark.metric: mark.value for mark in mark_rules(comma, "Well, here it is:\n<<A title>>\nno marks")}
    assert (found["prompt_level_strict_acc"], found["inst_level_strict_acc"]) == (0.0, 0.5)
    assert found["prompt_level_loose_acc"] == 1.0
    assert [mark.value for mark in mark_rules(comma, "  ")] == [0.0] * 4


def test_ifeval_leaves_out_what_it_cannot_judge(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    judged_rules.cache_clear()
    marks = mark_rules(ifeval(["language:response_language", "punctuation:no_comma"], [{"language": "de"}, {}]), "Ja")
    assert [mark.metric for mark in marks] == ["inst_level_strict_acc", "inst_level_loose_acc"]
    assert mark_rules(ifeval(["language:response_language"], [{"language": "de"}]), "Ja") == []
    assert mark_rules(ifeval(["change_case:english_capital"], [{}]), "JA") == [], "its language counts too"
    judged_rules.cache_clear()
    with pytest.raises(ValueError, match="num_words"):
        mark_rules(ifeval(["length_constraints:number_words"], [{"relation": "at least"}]), "one")


def test_the_number_of_instructions_counts_each():
    """Two rows, of one and of three instructions: the mean is over four."""
    assert summary([1.0, 0.0, 0.0, 1.0])["value"] == 0.5


def test_words_in_common():
    assert word_f1("The  cat sat.", "a cat sat") == 1.0
    assert word_f1("the cat", "dog") == 0.0
    assert word_f1("black cat", "cat") == pytest.approx(2 / 3)
    assert word_f1("", "") == 1.0 and word_f1("", "x") == 0.0
    assert word_f1("北京", "北京市") == pytest.approx(0.8)


def test_bleu_and_rouge_are_those_of_their_libraries():
    pytest.importorskip("sacrebleu")
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    import sacrebleu

    outputs = ["the cat sat on the mat", "a dog barks, loudly!", "nothing alike"]
    targets = ["the cat sits on the mat", "a dog barks loudly", "completely different words here"]
    found = corpus(["bleu", "chrf"], outputs, targets)
    assert found["bleu"]["value"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [targets]).score, abs=1e-12)
    assert found["chrf"]["value"] == pytest.approx(sacrebleu.corpus_chrf(outputs, [targets]).score, abs=1e-12)
    assert "tok:13a" in found["bleu"]["signature"]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for output, target in zip(outputs, targets, strict=True):
        theirs = {name: score.fmeasure for name, score in scorer.score(target, output).items()}
        assert rouge(output, target) == pytest.approx(theirs, abs=1e-12)
    assert "tok:zh" in corpus(["bleu"], ["我在北京"], ["我在北京市"])["bleu"]["signature"]
    assert rouge("我在北京", "我在北京市")["rouge1"] == pytest.approx(8 / 9)


def test_samples_of_a_model_are_run_and_recorded(tmp_path):
    """A model that babbles passes nothing; its samples differ, and each stands in the tables."""
    pytest.importorskip("torch", reason="generation needs torch")
    from tiny_chat import write_chat_model

    from postmill.io.manifest import load_artifact
    from postmill.io.schemas import EVAL_ITEMS_V1, EVAL_SCORES_V1
    from postmill.io.table import TableReader
    from postmill.stages.eval.config import STAGE, Eval
    from postmill.stages.options import make
    from postmill.stages.runner import Options, run_stage

    model, data, task = write_chat_model(tmp_path / "m"), tmp_path / "t.jsonl", tmp_path / "short.toml"
    data.write_text("\n".join(json.dumps(HUMANEVAL | {"task_id": str(n)}) for n in range(2)))
    text = (ROOT / "stages" / "eval" / "tasks" / "humaneval.toml").read_text()
    task.write_text(text.replace("max_tokens = 1024", "max_tokens = 6"))
    options = make(Eval, samples=3, temperature=1.0, prompt="chat", sandbox=KIND)
    given = {"tested": [str(model)], "data": [f"test={data}"], "task_file": [str(task)]}
    run_stage(STAGE, options, given, tmp_path / "e", Options(threads=1))
    metrics = load_artifact(tmp_path / "e").manifest.metrics
    assert metrics["metrics"] == {"pass@1": {"value": 0.0, "stderr": 0.0, "num_items": 2}}
    assert (metrics["samples"], metrics["num_items"], metrics["num_errors"]) == (3, 2, 0)
    items = [row for batch in TableReader(tmp_path / "e" / "items.arrow", EVAL_ITEMS_V1) for row in batch.to_pylist()]
    assert [row["item_id"] for row in items] == [f"test-{n}.{sample}" for n in range(2) for sample in range(3)]
    assert len({row["output"] for row in items}) > 3
    scores = [row for b in TableReader(tmp_path / "e" / "scores.arrow", EVAL_SCORES_V1) for row in b.to_pylist()]
    assert [(row["item_id"], row["rule"], row["ok"]) for row in scores] == [
        (f"test-{n}", "pass@1", False) for n in range(2)
    ]
    assert all(row["reason"].count(";") == 2 for row in scores)


def test_options_that_do_not_go_with_a_task_are_refused(tmp_path):
    from postmill.stages.eval.config import STAGE, Eval
    from postmill.stages.options import make
    from postmill.stages.runner import Options, run_stage

    data, model = tmp_path / "t.jsonl", tmp_path / "m"
    data.write_text(json.dumps(HUMANEVAL))
    model.mkdir()
    (model / "config.json").write_text("{}")
    for options, message in [
        ({"task": "arc_easy", "prompt": "chat"}, "takes no --prompt chat"),
        ({"task": "gsm8k", "samples": 2, "temperature": 1.0}, "for tasks that run code"),
        ({"task": "humaneval", "samples": 2}, "pass --temperature"),
    ]:
        with pytest.raises((ConfigError, ArtifactError), match=message):
            run_stage(
                STAGE,
                make(Eval, **options),
                {"tested": [str(model)], "data": [f"test={data}"]},
                tmp_path / "o",
                Options(),
            )


_WORDS = ["alpha", "Beta", "gamma,", "delta.", "*star*", "<<title>>", "P.S.", "note", "[slot]", "-", "bullet", "42"]
_WORDS += ["my answer is yes.", "{x}", "******", "part", "the house is on the hill", "das Haus steht auf dem Hügel"]
RULES = [
    ("change_case:english_capital", {}),
    ("change_case:english_lowercase", {}),
    ("combination:two_responses", {}),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_format:constrained_response", {}),
    ("detectable_format:json_format", {}),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}),
    ("detectable_format:title", {}),
    ("keywords:existence", {"keywords": ["alpha", "delta"]}),
    ("keywords:forbidden_words", {"forbidden_words": ["gamma", "note"]}),
    ("keywords:frequency", {"keyword": "beta", "frequency": 2, "relation": "at least"}),
    ("keywords:letter_frequency", {"letter": "a", "let_frequency": 6, "let_relation": "less than"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "alpha"}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    ("length_constraints:number_words", {"num_words": 9, "relation": "less than"}),
    ("punctuation:no_comma", {}),
    ("startend:end_checker", {"end_phrase": "yes."}),
    ("startend:quotation", {}),
    ("combination:repeat_prompt", {"prompt_to_repeat": "alpha beta"}),
    ("language:response_language", {"language": "de"}),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not LM_EVAL.exists(), reason="make engines")
def test_ifeval_is_that_of_lm_eval(tmp_path, monkeypatch):
    """Its own code on 541 rows of made instructions, two made answers each: every verdict equal, strict and loose."""
    (packages,) = (LM_EVAL.parents[1] / "lib").glob("python3*/site-packages")
    (tmp_path / "packages").mkdir()
    for name in ("langdetect", "six.py"):
        (tmp_path / "packages" / name).symlink_to(packages / name)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    judged_rules.cache_clear()
    draw = random.Random(3)
    rows, answers = [], []
    for number in range(541):
        picked = draw.sample(RULES, draw.randint(1, 3))
        names, kwargs = [name for name, _ in picked], [of for _, of in picked]
        rows.append({"key": number, "prompt": "Do it.", "instruction_id_list": names, "kwargs": kwargs})
        answers.append([_made_answer(draw) for _ in range(2)])
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps({"rows": rows, "answers": answers}))
    side = [str(LM_EVAL), str(ROOT / "tests" / "lm_eval_ifeval_side.py"), str(cases), str(tmp_path / "out.json")]
    subprocess.run(side, check=True)
    theirs = json.loads((tmp_path / "out.json").read_text())
    _, ours = items("ifeval", rows)
    yes = 0
    for item, said, expected in zip(ours, answers, theirs, strict=True):
        for answer, verdicts in zip(said, expected, strict=True):
            found = {mark.metric: mark.parts or bool(mark.value) for mark in mark_rules(item, answer)}
            assert found == verdicts, (item.row, answer)
            yes += sum(verdicts["inst_level_strict_acc"])
    judged_rules.cache_clear()
    assert 200 < yes < 2000


def _made_answer(draw: random.Random) -> str:
    lines = [" ".join(draw.choices(_WORDS, k=draw.randint(0, 5))) for _ in range(draw.randint(1, 5))]
    text = draw.choice(["\n", "\n\n", "\n***\n", "\n- "]).join(lines)
    wrap = draw.choice(
        ["{}", "{}", '"{}"', "SECTION 1 {} SECTION 2", "alpha beta {}", "{}\n\nalpha yes.", '{{"a": 1}}']
    )
    text = wrap.format(text)
    return draw.choice([text, text, text.upper(), text.lower()])
