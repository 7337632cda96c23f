"""Rules of IFEval: an answer that follows each and one that does not, read as the paper's checker reads them."""

import pytest

from postmill.stages.reward.functions import BUILT_IN
from postmill.stages.reward.row import Row
from postmill.stages.shared.ifeval import RULES

CASES = [
    ("change_case:english_capital", {}, "ALL UP 3.", "All up"),
    ("change_case:english_lowercase", {}, "all down 3.", "All down"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, " say it now", "I say it"),
    ("combination:two_responses", {}, "one\n******\ntwo", "same******same"),
    ("combination:two_responses", {}, "******one******two", "one******\n******two"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "text\nP. S. more", "text PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "text\nP.P.S more", "P.S. more"),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "no."),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 a Part 2 b",
        "Part 1",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n** two"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and ** **"),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>"),
    ("keywords:existence", {"keywords": ["Tea", "cup"]}, "a cup of tea", "a cup"),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "steam", "Tea!"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea, tea", "tea"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "Eat", "eel"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "first\n\n'Then, second",
        "then\n\nsecond",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one *** two ***", "one *** *** two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one, two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    ("punctuation:no_comma", {}, "no comma; none", "a, b"),
    ("startend:end_checker", {"end_phrase": "The end."}, 'so it goes. "the END."', "The end. No."),
    ("startend:quotation", {}, '"quoted"', '"quoted'),
]


@pytest.mark.parametrize(("name", "of", "follows", "does_not"), CASES)
def test_each_rule_tells_an_answer_that_follows_it(name, of, follows, does_not):
    assert RULES[name](follows, of)
    assert not RULES[name](does_not, of)


def test_every_rule_has_a_case():
    assert {name for name, *_ in CASES} == set(RULES)


def test_a_row_gets_the_share_of_what_it_follows():
    def judge(output, **columns):
        row = Row(
            output=output, messages=[], transcript=[], finish="stop", num_tokens=1, sample=0, columns=columns, seed=0
        )
        return BUILT_IN["ifeval"][0](row, {})

    names = ["punctuation:no_comma", "length_constraints:number_words", "language:response_language"]
    kwargs = [{"num_words": None}, {"num_words": 2, "relation": "at least", "letter": None}, {"language": "de"}]
    assert judge("two words", instruction_id_list=names, kwargs=kwargs) == 1.0
    assert judge("one,", instruction_id_list=names, kwargs=kwargs) == 0.0
    assert judge("a, b", instruction_id_list=names, kwargs=kwargs) == 0.5
    assert judge("text", instruction_id_list=["language:response_language"], kwargs=[{}]) is None
    assert judge("text") is None
