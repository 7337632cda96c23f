"""Faults and frictions that strangers found, one row each: what was given, what happened, what happens now, which test.

`REPORTS` is the table. Its rows about what a conversation becomes run here: `given` becomes `now`, as runs of text with
their weight, or is refused with these words. Rows about files, training, merging and scoring name the test that holds
them, and a test here holds that it is there. Numbers are those of public issues that were tried (`H`), of causes found
with the test suites of other projects (`F`, with frictions `R`), and of a review (`V`).
"""

import ast
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_encoder import encoder, run, shown

pytest.importorskip("postmill._native", reason="native module not built")

TESTS = Path(__file__).parent.parent


class Report(NamedTuple):
    """One row of the table."""

    number: str
    source: str
    before: str
    now: Any
    """Runs of (text, weight) of each row; or a str: words of the refusal; or what the named tests hold."""
    given: Any = None
    """Rows; None where the tests hold it."""
    options: dict[str, Any] | None = None
    tests: tuple[str, ...] = ()
    """`file::function`, below tests/."""


def user(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def bot(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def chat(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages)} | columns


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


WEIGH = {"type": "function", "function": {"name": "weigh", "description": "Weigh", "parameters": {"type": "object"}}}
CALLED = chat(
    user("How much?"), bot(None, tool_calls=[call("weigh", sack=3)]), {"role": "tool", "content": "25 kg"}, bot("25.")
)
Q, A = user("Grind it."), bot("Done.")
PLAIN = [("<bos><user>Grind it.<end><bot>", 0.0), ("Done.<end>", 1.0)]
TURNS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<bot>{% if m.tool_calls %}{% for t in m.tool_calls %}"
    "{{ t.function.name }}({{ t.function.arguments | tojson }}){% endfor %}{% else %}{{ m.content }}{% endif %}"
    "<end>{% elif m.role == 'tool' %}<user>{% for o in messages if o.tool_calls %}{% for t in o.tool_calls %}"
    "answers {{ t.function.name }}{% endfor %}{% endfor %}: {{ m.content }}<end>{% else %}<user>{{ m.content }}<end>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
IN_LIST = (
    "{% for m in messages %}{% if m.role is in ['user', 'system'] %}<user>{% else %}<bot>{% endif %}{{ m.content }}"
    "<end>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
PARTS = (
    "{% for m in messages %}{{ '<bot>' if m.role == 'assistant' else '<user>' }}{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
ADDED = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}<end>{% else %}<bot>"
    "{% for t in m.tool_calls or [] %}{{ 'CALL ' + t.function.name + ' ' + t.function.arguments }}{% endfor %}"
    "{{ m.content or '' }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
AFTER_LOOP = (
    "{% for m in messages %}{{ '<bot>' if m.role == 'assistant' else '<user>' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% else %}<end>{% endif %}"
)
ALWAYS = (
    "{% for m in messages %}{{ '<bot>' if m.role == 'assistant' else '<user>' }}{{ m.content }}<end>{% endfor %}<bot>"
)
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}<end><bot>{% else %}\n"
    "    {{ m.content }}<end>{% endif %}{% endfor %}\n\n"
    "{% if add_generation_prompt and messages[-1].role != 'user' %}<bot>{% endif %}"
)

REPORTS = [
    Report(
        "H1 F1 V4.1",
        "transformers#45422, trl#5627, ollama#14181",
        "the call was dropped, an empty answer trained",
        "chat template does not write this tool call",
        [CALLED],
    ),
    Report(
        "H1",
        "the definitions of tools alone",
        "gone without a word",
        "chat template does not write this tool definition",
        [chat(Q, A, tools=[WEIGH])],
    ),
    Report(
        "H2",
        "Command A: a result looks its call up",
        "the name in the tool's turn was trained",
        [
            [
                ("<user>How much?<end><bot>", 0.0),
                ('weigh({"sack": 3})<end>', 1.0),
                ("<user>answers weigh: 25 kg<end><bot>", 0.0),
                ("25.<end>", 1.0),
            ]
        ],
        [CALLED],
        {"template": TURNS},
    ),
    Report(
        "H4",
        "ansible/jinja: a test with an argument",
        "stack overflow, exit 139",
        [[("<user>Grind it.<end><bot>", 0.0), ("Done.<end>", 1.0)]],
        [chat(Q, A)],
        {"template": IN_LIST},
    ),
    Report(
        "H6",
        "axolotl#2710, trl#931: an end behind the loop",
        "the end was not trained, nothing was said",
        [[("<user>Grind it.<bot>", 0.0), ("Done.<end>", 1.0)]],
        [chat(Q, A)],
        {"template": AFTER_LOOP, "special_texts": [("eos_token", "<end>")]},
    ),
    Report(
        "H7 F4",
        "a generation prompt that is always printed",
        "its header was trained in each turn",
        [[("<user>Grind it.<end><bot>", 0.0), ("Done.<end>", 1.0), ("<bot>", 0.0)]],
        [chat(Q, A)],
        {"template": ALWAYS},
    ),
    Report(
        "H8 H9",
        "Jamba's template; 271 snippets of Jinja",
        "2 crashed, 47 were refused",
        "text equal to jinja2's",
        tests=("ext/test_jinja.py::", "ext/test_template.py::test_text_equals_transformers"),
    ),
    Report(
        "H11",
        "Command A, parallel calls and results",
        "refused: turns overlap",
        "read",
        tests=("ext/test_content_law.py::test_a_call_looked_up_in_a_tools_message_is_the_tools",),
    ),
    Report(
        "H12",
        "a chat that starts with the assistant",
        "refused: the generation prompt is unknown",
        [[("<bos><bot>", 0.0), ("Hello.<end>", 1.0), ("<user>Grind it.<end><bot>", 0.0), ("Done.<end>", 1.0)]],
        [chat(bot("Hello."), Q, A)],
    ),
    Report(
        "H13",
        "openai-cookbook#1270: weight 0",
        "trained with weight 1",
        [[("<bos><user>Name it.<end><bot>Granite.<end><user>Again.<end><bot>", 0.0), ("Rye.<end>", 1.0)]],
        [chat(user("Name it."), bot("Granite.", weight=0), user("Again."), bot("Rye.", weight=1))],
    ),
    Report(
        "H14",
        "axolotl#2362: train false",
        "trained",
        [[("<bos><user>Name it.<end><bot>Granite.<end><user>Again.<end><bot>", 0.0), ("Rye.<end>", 1.0)]],
        [chat(user("Name it."), bot("Granite.", train=False), user("Again."), bot("Rye.", train=True))],
    ),
    Report(
        "H16",
        "axolotl#3217: a pair after a tool's result",
        "the rejected side had no call and no result",
        "both have",
        tests=("ext/test_row_meaning.py::test_the_rejected_side_has_the_whole_prompt",),
    ),
    Report(
        "H18",
        "trl#4201: answers inside a prompt",
        "trained",
        [[("<bos><user>Hello<end><bot>An old answer.<end><user>And now?<end><bot>", 0.0), ("The new one.<end>", 1.0)]],
        [{"prompt": [user("Hello"), bot("An old answer."), user("And now?")], "completion": [bot("The new one.")]}],
    ),
    Report(
        "H19",
        "distilabel#343: UltraFeedback",
        "refused",
        [
            [("<bos><user>Rye?<end><bot>", 0.0), ("Yes.<end>", 1.0)],
            [("<bos><user>Rye?<end><bot>", 0.0), ("No.<end>", 1.0)],
        ],
        [
            {
                "prompt": "Rye?",
                "chosen": [user("Rye?"), bot("Yes.")],
                "rejected": [user("Rye?"), bot("No.")],
                "messages": [user("Rye?"), bot("Yes.")],
                "score_chosen": 9.0,
                "score_rejected": 2.0,
            }
        ],
    ),
    Report(
        "H20",
        "LLaMA-Factory: kto_tag",
        "the bad answer was an example to learn from",
        "labels 0 and 1",
        tests=("ext/test_row_meaning.py::test_kto_tags_are_labels",),
    ),
    Report(
        "H22",
        "Dolly's context",
        "answered without it, nothing said",
        "columns that nobody reads are named",
        tests=("stages/tokenize/test_reading.py::test_columns_that_nobody_reads_are_named_once",),
    ),
    Report(
        "H23",
        "trl#1283: text that ends in the end",
        "two ends",
        [[("Two stones.<end>", 1.0)]],
        [{"text": "Two stones.<end>"}],
    ),
    Report(
        "H24",
        "text with a template that prints a date",
        "--date was asked for",
        "works",
        tests=("stages/tokenize/test_reading.py::test_text_needs_no_date",),
    ),
    Report(
        "H25",
        "datasets#1993: cache-*.arrow",
        "6 rows for 3",
        "3 rows",
        tests=(
            "stages/tokenize/test_reading.py::test_a_saved_dataset_is_what_its_state_lists",
            "stages/tokenize/test_reading.py::test_the_cache_of_datasets_is_no_data",
        ),
    ),
    Report(
        "H26 V4.3",
        "WildChat: times, decimals, intervals in messages",
        "65 or 70",
        "text, or refused where it is read",
        tests=(
            "stages/tokenize/test_reading.py::test_types_with_a_text_form_at_any_depth",
            "stages/tokenize/test_reading.py::test_types_without_one_stop_a_run_only_where_they_are_read",
        ),
    ),
    Report(
        "H28 H54",
        "datasets#6460: kinds by their bytes",
        "the name was believed",
        "bytes tell; archives are named",
        tests=(
            "stages/tokenize/test_reading.py::test_bytes_tell_what_a_file_is_whatever_its_name",
            "stages/tokenize/test_reading.py::test_archives_are_named",
        ),
    ),
    Report(
        "H30 H32 H35",
        "forms of OpenAI, Gemini, Responses",
        "wrong advice",
        "read or refused by name",
        tests=("ext/test_row_options.py::test_forms_of_other_services",),
    ),
    Report(
        "H31",
        "HH-RLHF: texts with a prompt inside",
        "a riddle",
        "the common start is the prompt",
        tests=("ext/test_row_options.py::test_pairs_of_texts_have_their_prompt_in_common",),
    ),
    Report(
        "H33",
        "roles ipython, chatgpt, bard, bing",
        "unknown role",
        [PLAIN],
        [chat({"role": "human", "content": "Grind it."}, {"role": "chatgpt", "content": "Done."})],
    ),
    Report(
        "H34",
        "xLAM: answers that are calls",
        "trained as text",
        "calls",
        tests=("ext/test_row_options.py::test_answers_that_are_lists_of_calls_are_calls",),
    ),
    Report(
        "H36 H95",
        "rows without an answer column",
        "nothing left of 1 rows",
        "no response column",
        tests=("ext/test_row_meaning.py::test_a_question_without_an_answer_column_is_named",),
    ),
    Report(
        "H51",
        "Mistral's ids of nine characters",
        "refused",
        "--number-calls",
        tests=("ext/test_row_options.py::test_ids_of_calls_are_numbered_anew",),
    ),
    Report(
        "H55",
        "NaN in a column that nobody reads",
        "refused",
        "read",
        tests=("stages/tokenize/test_reading.py::test_numbers_that_are_none_stop_a_run_only_where_they_are_read",),
    ),
    Report(
        "H56",
        "answers that are numbers",
        "expected a text",
        [[("<bos><user>6 x 12?<end><bot>", 0.0), ("72<end>", 1.0)]],
        [{"question": "6 x 12?", "answer": 72}],
    ),
    Report(
        "H59 H62 H63 R7",
        "files of a tokenizer folder",
        "another template, or none",
        "as transformers 5",
        tests=("stages/tokenize/test_tokenizer_folders.py::",),
    ),
    Report(
        "H64",
        "tokenizer.model, vocab, tekken.json alone",
        "refused, with a remedy that did not apply",
        "tekken is read",
        tests=(
            "stages/tokenize/test_tokenizer_folders.py::test_tekken_alone_is_a_tokenizer",
            "stages/tokenize/test_tokenizer_folders.py::test_other_tokenizers_are_refused_with_what_converts_them",
        ),
    ),
    Report(
        "H65",
        "peft#2267: GPT-2",
        "exit 70",
        "trains",
        tests=("stages/train/test_families.py::test_linear_layers_of_gpt2_get_adapters",),
    ),
    Report(
        "H66",
        "GPT-J",
        "exit 70",
        "refused by name",
        tests=("stages/train/test_families.py::test_a_family_with_attention_of_its_own_is_refused_by_name",),
    ),
    Report(
        "H68",
        "models whose layers mix rows",
        "use another model",
        "computed row by row",
        tests=("stages/train/test_recurrent.py::test_rows_of_a_bin_are_what_they_are_alone",),
    ),
    Report(
        "H70",
        "unsloth#6936: experts left frozen",
        "not said",
        "said, with what adapts them",
        tests=("stages/train/test_frozen_experts.py::test_experts_without_an_adapter_are_named",),
    ),
    Report(
        "H71",
        "unsloth#5410: DeepSeek-V3's adapter",
        "train made what merge refused",
        "merged",
        tests=("stages/merge/test_merge_faults.py::test_71_target_parameters",),
    ),
    Report(
        "H72",
        "unsloth-zoo#812: an adapter of one expert",
        "exit 70",
        "merged",
        tests=("stages/merge/test_merge_faults.py::test_72_factors_for_single_experts_pass_the_parity_check",),
    ),
    Report(
        "H74",
        "transformers#12763: more tokens than rows",
        "exit 0",
        "refused",
        tests=("stages/merge/test_merge_faults.py::test_74_a_tokenizer_larger_than_the_embedding_is_refused",),
    ),
    Report(
        "H76 H77",
        "names of other writers",
        "refused",
        "mean the same",
        tests=(
            "stages/merge/test_merge_faults.py::test_76_77_names_of_other_writers_mean_the_same",
            "stages/merge/test_merge_faults.py::test_77_a_name_of_no_tensor_is_told_with_the_nearest",
        ),
    ),
    Report(
        "H79",
        "an adapter that was never trained",
        "silent",
        "said",
        tests=("stages/merge/test_merge_faults.py::test_79_an_untrained_adapter_is_told",),
    ),
    Report(
        "H83",
        "warnings of PEFT",
        "on stderr under -q",
        "one line, or none",
        tests=("stages/merge/test_merge_faults.py::test_83_warnings_of_peft_are_a_line_each_or_none",),
    ),
    Report(
        "H84 F14",
        "lm-eval#1204: 18 in 18.5",
        "right",
        "wrong",
        tests=(
            "stages/eval/test_scoring.py::test_numbers_are_compared_as_numbers",
            "stages/eval/test_scoring.py::test_words_are_whole_in_every_script",
        ),
    ),
    Report(
        "H85 F13",
        "ds4#321: a letter at the start",
        "A",
        "C",
        tests=("stages/eval/test_scoring.py::test_the_surest_sign_of_a_choice_decides",),
    ),
    Report(
        "H87",
        "a JSON list as questions",
        "malformed",
        "read",
        tests=("stages/eval/test_scoring.py::test_a_json_list_of_questions_is_read",),
    ),
    Report(
        "H88 H89",
        "names of modules",
        "a typo was taken",
        "refused with the names",
        tests=("stages/train/test_families.py::test_names_of_modules",),
    ),
    Report(
        "H101",
        "show of raw rows",
        "other flags than tokenize",
        "the same",
        tests=("stages/tokenize/test_reading.py::test_show_previews_raw_rows_with_the_flags_of_tokenize",),
    ),
    Report(
        "H91",
        "a list cut off at its end",
        "nothing kept",
        "--on-cut keep",
        tests=("stages/tokenize/test_reading.py::test_a_cut_file_is_read_up_to_the_cut_on_request",),
    ),
    Report(
        "H92", "SentencePiece families", "slow, not said", "an engine of our own", tests=("ext/test_char_bpe.py::",)
    ),
    Report(
        "H93 V4.2",
        "rows left out by --on-bad-row skip",
        "nothing said",
        "a line at the end",
        tests=("stages/tokenize/test_tokenize.py::test_the_ledger_names_every_row_that_did_not_pass",),
    ),
    Report(
        "H94", "a question that is a list of lists", "a riddle", "$", [{"question": [[user("q")]], "response": "a"}]
    ),
    Report(
        "H96 V4.4",
        "arrow-testing: damaged tables",
        "70 for 14 of 283",
        "65",
        tests=(
            "stages/tokenize/test_reading.py::test_names_and_strings_that_are_not_utf8_are_placed",
            "stages/tokenize/test_reading.py::test_damaged_tables_are_bad_data_and_never_a_fault_of_ours",
        ),
    ),
    Report(
        "F2",
        "templates that read parts only",
        "every word was lost",
        [[("<user>Grind it.<end><bot>", 0.0), ("Done.<end>", 1.0)]],
        [chat(Q, A)],
        {"template": PARTS},
    ),
    Report(
        "F3",
        "marks on questions",
        "ignored",
        "refused, or obeyed",
        tests=(
            "ext/test_row_meaning.py::test_a_mark_that_leaves_a_question_out_says_what_is_so",
            "ext/test_row_options.py::test_marks_still_count_where_questions_are_trained",
        ),
    ),
    Report(
        "F5",
        "templates that join arguments to text",
        "failed",
        [[("<user>High?<end><bot>", 0.0), ('CALL read {"river": "Aare"}<end>', 1.0)]],
        [chat(user("High?"), bot("", tool_calls=[call("read", river="Aare")]))],
        {"template": ADDED},
    ),
    Report(
        "F6",
        "LlamaTokenizer folders",
        "13 ids for 11",
        "as transformers 5",
        tests=(
            "stages/tokenize/test_tokenizer_folders.py::test_a_llama_tokenizer_gives_the_ids_of_transformers",
            "stages/tokenize/test_tokenizer_folders.py::"
            "test_the_digest_sees_a_family_that_makes_another_tokenizer_of_the_same_files",
        ),
    ),
    Report(
        "F7",
        "GPT-2: transposed and plain modules",
        "one rule for all",
        "each by itself",
        tests=("stages/merge/test_merge_faults.py::test_f7_each_module_decides_whether_it_is_transposed",),
    ),
    Report(
        "F8",
        "trained tokens beside a saved embedding",
        "refused",
        "merged as PEFT does",
        tests=("stages/merge/test_merge_faults.py::test_f8_trained_tokens_beside_a_saved_or_resized_embedding",),
    ),
    Report(
        "F9",
        "Mamba's tied embedding",
        "the head changed with it",
        "unchanged",
        tests=("stages/merge/test_merge_faults.py::test_f9_a_tied_embedding_by_the_name_its_family_has",),
    ),
    Report(
        "F10",
        "a post-processor's end",
        "came in front",
        "behind",
        tests=("stages/tokenize/test_groups.py::test_text_to_learn_from_has_the_frame_of_an_encoder_around_it",),
    ),
    Report(
        "F11",
        "BPE dropout",
        "other ids in each run",
        "refused",
        tests=("ext/test_encode.py::test_a_tokenizer_that_cuts_words_at_random_is_refused",),
    ),
    Report(
        "F12",
        "a turn trained in part",
        "its end was not trained",
        [[("<bos><user>Tell.<end><bot>", 0.0), ("The good part.", 1.0), (" A slip.", 0.0), ("<end>", 1.0)]],
        [chat(user("Tell."), bot(["The good part.", " A slip."], loss=[True, False]))],
    ),
    Report(
        "R1",
        "train inside a part",
        "unseen",
        [[("<bos><user>2+2?<end><bot>Five. ", 0.0), ("No, four.<end>", 1.0)]],
        [
            chat(
                user("2+2?"),
                bot(
                    [
                        {"type": "text", "text": "Five. ", "train": False},
                        {"type": "text", "text": "No, four.", "weight": 1},
                    ]
                ),
            )
        ],
    ),
    Report(
        "R2",
        "reasoning given as parts",
        "vanished",
        "joined",
        tests=("ext/test_row_meaning.py::test_reasoning_may_be_a_list_of_parts",),
    ),
    Report(
        "R3",
        "tools: []",
        "no tools, where transformers has a list",
        "written in one form",
        tests=("ext/test_row_meaning.py::test_tools_come_in_one_form",),
    ),
    Report(
        "R4",
        "merging.md promised PEFT's bits",
        "the last float32 bit may differ",
        "the page says so; results are compared with PEFT's",
        tests=("stages/merge/test_methods.py::test_equals_peft",),
    ),
    Report(
        "R6",
        "an empty text",
        "stopped the run",
        "the text is empty",  # a bad row as any other: it stops the run, or is left out and counted
        [{"text": ""}],
        tests=("ext/test_encode.py::test_bad_rows_stop_with_their_place_or_are_skipped",),
    ),
    Report(
        "R8",
        "bare tools",
        "'function' is undefined",
        "brought into one form",
        tests=("ext/test_row_meaning.py::test_tools_come_in_one_form",),
    ),
    Report(
        "V indented",
        "mistral.rs: a template whose white space differs before the answer",
        "refused",
        [[("<user>Grind it.<end><bot>    ", 0.0), ("Done.<end>", 1.0), ("\n", 0.0)]],
        [chat(Q, A)],
        {"template": SPACED, "special_texts": [("eos_token", "<end>")]},
    ),
]


@functools.cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_report_has_its_row() -> None:
    """All that were handed over: 53 numbers of public issues, 14 causes, what the review found."""
    numbers = [number for report in REPORTS for number in report.number.split()]
    issues = [
        *(1, 2, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 18, 19, 20, 22, 23, 24, 25, 26, 28, 30, 31, 32, 33, 34, 35, 36, 51),
        *(54, 55, 56, 59, 62, 63, 64, 65, 66, 68, 70, 71, 72, 74, 76, 77, 79, 83, 84, 85, 87, 88, 89, 91, 92, 93, 94),
        *(95, 96, 101),
    ]
    expected = {f"H{n}" for n in issues} | {f"F{n}" for n in range(1, 15)} | {f"V4.{n}" for n in range(1, 5)}
    assert expected <= set(numbers)


@pytest.mark.parametrize("report", [r for r in REPORTS if r.tests], ids=lambda report: report.number)
def test_the_tests_that_a_row_names_are_there(report: Report) -> None:
    for name in report.tests:
        file, _, function = name.partition("::")
        assert function in functions(file) or (not function and functions(file)), name


@pytest.mark.parametrize("report", [r for r in REPORTS if r.given is not None], ids=lambda report: report.number)
def test_what_was_given_becomes_what_is_right(report: Report) -> None:
    from postmill._native import NativeError

    enc = encoder(**(report.options or {}))
    if isinstance(report.now, str):
        with pytest.raises(NativeError) as refused:
            run(enc, *report.given)
        assert report.now in str(refused.value) and refused.value.code == 65
        return
    made, _, _ = run(enc, *report.given)
    assert [shown(enc, row) for row in made] == report.now
