"""Everything that people start from, run at toy size by its test: recipes, notebooks, examples, pages and exports.

usage: python tests/ran.py [KIND...]     prints a table with seconds; KIND: recipe, notebook, example, page, export

Ends with 1 if a test fails or is left out, or if there is a recipe, notebook, example or form of export without one.
The demo and convert_gguf.py are not here: `make demo` and `make assets` run them, on the model that they are about.
"""

import sys
from pathlib import Path

import pytest

from postmill.cli.chain import RECIPES
from postmill.cli.export import FORMS

TESTS = Path(__file__).resolve().parent
EXAMPLES = TESTS.parent / "examples"
_LOOP = "cli/test_loop.py::test_a_recipe_that_comes_with_the_package_runs_to_its_merged_model"
_EQUAL = "cli/test_export_equal.py::test_a_program_that_is_stopped_and_started_again_makes_what_run_makes"
_OF_EXAMPLES = {
    "environments/lines.py": "test_environments.py::test_tools_of_an_mcp_server",
    "environments/mcp_server.py": "test_environments.py::test_tools_of_an_mcp_server",
    "environments/mcp_tools.py": "test_environments.py::test_tools_of_an_mcp_server",
    "environments/openenv_env.py": "test_environments.py::test_an_openenv_server_plays_and_rewards",
    "environments/openenv_server.py": "test_environments.py::test_an_openenv_server_plays_and_rewards",
    "environments/verifiers_env.py": "test_environments.py::test_a_taskset_of_verifiers_plays_and_rewards",
    "environments/verifiers_guess.py": "test_environments.py::test_a_taskset_of_verifiers_plays_and_rewards",
    "environments/verifiers_guess.toml": "test_environments.py::test_a_taskset_of_verifiers_plays_and_rewards",
    "grpo/calc.py": "test_grpo.py::test_products_have_their_solutions_and_the_tool_knows_them",
    "grpo/calc.toml": "test_grpo.py::test_the_recipe_with_the_tool_makes_rounds",
    "grpo/kth.py": "test_grpo.py::test_questions_have_their_solutions_and_none_stands_twice",
    "grpo/kth.toml": "test_grpo.py::test_the_recipe_makes_rounds_and_measures_held_out_questions",
    "grpo/ppo.toml": "test_grpo.py::test_the_recipe_with_a_critic_trains_both",
    "pictures/boxes.py": "test_pictures.py::test_held_out_digits_are_read_and_found[boxes]",
    "pictures/digits.py": "test_pictures.py::test_held_out_digits_are_read_and_found[digits]",
    "pictures/tiny.py": "test_pictures.py::test_held_out_digits_are_read_and_found[digits]",
    "pipe.sh": "test_demo.py::test_the_pipe_makes_a_model_that_answers",
    "quantize_table.py": "test_demo.py::test_the_table_of_quantized_models_has_a_line_for_each",
    "python/hf_trainer.py": "../stages/test_door.py::test_a_loop_of_ones_own_and_trainer_see_the_loss_that_train_sees",
    "python/plain_loop.py": "../stages/test_door.py::test_a_loop_of_ones_own_and_trainer_see_the_loss_that_train_sees",
    "python/trl_sft.py": "../stages/test_door.py::test_trl_takes_the_tokens_as_they_are",
    "sounds/transcribe.py": "test_sounds.py::test_whisper_writes_down_what_is_read_aloud",
}
"""File below examples -> its test, below tests/examples."""


def things() -> dict[tuple[str, str], str]:
    """Kind and name -> the test of it; an empty text where there is none."""
    found: dict[tuple[str, str], str] = {}
    for path in sorted(RECIPES.glob("*.toml")):
        test = _LOOP if "[loop]" in path.read_text() else "cli/test_recipes.py::test_the_recipe_runs"
        found["recipe", path.stem] = f"{test}[{path.stem}]"
    for path in sorted((EXAMPLES / "notebooks").glob("*.ipynb")):
        found["notebook", path.stem] = f"examples/test_notebooks.py::test_{path.stem.replace('-', '_')}"
    for path in sorted(EXAMPLES.rglob("*")):
        name = str(path.relative_to(EXAMPLES))
        if path.suffix in (".py", ".sh", ".toml") and not name.startswith(("demo/", "convert_gguf")):
            test = _OF_EXAMPLES.get(name, "")
            found["example", name] = f"examples/{test}".replace("examples/../", "") if test else ""
    for name, test in (
        ("README.md", "test_the_first_three_commands_tune_a_model"),
        ("docs/zh/quickstart.md", "test_the_commands_of_the_chinese_quickstart_run"),
    ):
        found["page", name] = f"cli/test_readme.py::{test}"
    for form in FORMS:
        found["export", form] = f"{_EQUAL}[{form}]"
    found["export", "k8s"] = "cli/test_export.py::test_kubernetes_runs_the_stages_in_order_to_the_same_artifacts"
    return found


class _Seconds:
    """How long each test took with what it set up, and how it ended."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.ends: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.removeprefix("tests/")
        self.spent[name] = self.spent.get(name, 0.0) + report.duration
        if report.when == "call" or report.outcome != "passed":
            self.ends[name] = report.outcome


def main(kinds: list[str]) -> int:
    """Run the tests and print the table."""
    chosen = {key: test for key, test in things().items() if not kinds or key[0] in kinds}
    seconds = _Seconds()
    tests = [str(TESTS / test) for test in dict.fromkeys(filter(None, chosen.values()))]
    pytest.main([*tests, "-n", "0", "-q", "-o", "timeout=3000", "--no-header", "--tb=short"], plugins=[seconds])
    sys.stdout.write("\n| | | seconds | |\n|---|---|---|---|\n")
    for (kind, name), test in chosen.items():
        end = seconds.ends.get(test, "not run")
        sys.stdout.write(f"| {kind} | {name} | {seconds.spent.get(test, 0.0):.1f} | {end} |\n")
    return int(any(seconds.ends.get(test) != "passed" for test in chosen.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
