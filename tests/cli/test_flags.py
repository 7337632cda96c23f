"""Flags, recipes and their errors, on a struct with a field of each kind."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from postmill.cli.declaration import Declaration, Source
from postmill.cli.flags import Given, resolve
from postmill.cli.help import stage_help
from postmill.cli.stage_command import parse
from postmill.io.errors import ConfigError
from postmill.stages.options import options
from postmill.stages.spec import Port, Stage


class Optimizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One nested level."""

    lr: Annotated[float, Meta(gt=0)] = 1e-4
    """Learning rate."""


class Mill(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Grind rows into meal."""

    row_tokens: Annotated[int, Meta(ge=1)]
    """Length of one row, in tokens."""
    strategy: Literal["best_fit", "in_order"] = "best_fit"
    """How rows are placed."""
    fast: bool = False
    """Whether to hurry."""
    names: list[str] = []
    """Names to keep."""
    share: float = 0.5
    """A part."""
    kwargs: dict[str, str] = {}
    """Options of the template."""
    values: dict[str, Any] = {}
    """Options of any type."""
    shares: list[float] = []
    """Numbers."""
    optimizer: Optimizer = Optimizer()

    def __post_init__(self) -> None:
        if self.fast and self.row_tokens > 100:
            raise ValueError("--fast: needs --row-tokens of at most 100")


STAGE = Stage(
    name="mill",
    version=1,
    config=Mill,
    inputs={
        "rows": Port(kinds=("tokens",), help="token rows", many=True),
        "model": Port(kinds=("model",), help="a model", flag="-m", required=False),
    },
    output="meal",
    example="postmill mill rows/ -o meal/ --row-tokens 8",
)


def config(*argv: str) -> Mill:
    value = resolve(Mill, parse(STAGE, list(argv)).said, "mill")
    assert isinstance(value, Mill)
    return value


def faults(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(*argv)
    assert caught.value.code == 2
    return str(caught.value).splitlines()


def test_tables_and_lists_are_given_whole_or_piece_by_piece() -> None:
    for argv in [("--shares", "0.7,0.3"), ("--shares", "[0.7, 0.3]"), ("--shares", "0.7", "--shares", "0.3")]:
        assert config("in/", "--row-tokens", "8", *argv).shares == [0.7, 0.3]
    value = config("in/", "--row-tokens", "8", "--kwargs", "a=b=c", "--kwargs", '{"d": "e"}', "--kwargs", "n=7")
    assert value.kwargs == {"a": "b=c", "d": "e", "n": "7"}
    value = config("in/", "--row-tokens", "8", "--values", "think=false", "--values", "name=x", "--names", "[a,b]")
    assert (value.values, value.names) == ({"think": False, "name": "x"}, ["[a,b]"])
    assert faults("in/", "--row-tokens", "8", "--kwargs", "a") == [
        "--kwargs: 'a': expected key=value, or an object as JSON"
    ]


def test_each_kind_of_field_is_read_from_text() -> None:
    value = config(
        "in/", "--row-tokens=8", "--strategy", "in_order", "--fast", "--names", "a", "--names", "b", "--share", "25%",
        "--kwargs", '{"date": "today"}', "--optimizer.lr", "3e-5",
    )  # fmt: skip
    assert value == Mill(
        row_tokens=8, strategy="in_order", fast=True, names=["a", "b"], share=0.25, kwargs={"date": "today"},
        optimizer=Optimizer(lr=3e-5),
    )  # fmt: skip


def test_a_switch_can_be_turned_off_again() -> None:
    assert config("--row-tokens", "8", "--fast", "--no-fast").fast is False


def test_inputs_go_to_their_ports() -> None:
    call = parse(STAGE, ["a/", "-m", "base/", "b/", "--row-tokens", "8", "-o", "out/", "--", "-c/"])
    assert call.inputs == {"rows": ["a/", "b/", "-c/"], "model": ["base/"]}
    assert call.common == {"--output": "out/"}


def test_every_fault_is_reported_at_once() -> None:
    lines = faults("--row-tokens", "0", "--strategy", "worst", "--optimizer.lr", "-1")
    assert lines == [
        "--row-tokens: '0': expected `int` >= 1",
        "--strategy: 'worst': expected one of best_fit, in_order",
        "--optimizer.lr: '-1': expected `float` > 0.0",
    ]


def test_a_rule_between_fields_is_kept() -> None:
    assert faults("--row-tokens", "200", "--fast") == ["mill: --fast: needs --row-tokens of at most 100"]


def test_a_required_field_is_named() -> None:
    assert faults("in/") == ["mill: --row-tokens is required"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--row-tokns", "8"], "--row-tokns: no such flag of mill; did you mean --row-tokens?"),
        (["--forse"], "--forse: no such flag of mill; did you mean --force?"),
        (["--row-tokens"], "--row-tokens: needs a value"),
    ],
)
def test_a_flag_that_is_none_is_answered_with_the_nearest(argv: list[str], line: str) -> None:
    assert faults(*argv) == [line]


def test_recipes_go_from_left_to_right_and_flags_win(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.yaml"
    first.write_text('row_tokens = 8\nnames = ["a"]\n[optimizer]\nlr = 1e-3\n')
    second.write_text("mill:\n  row-tokens: 16\n  strategy: in_order\npack:\n  row_tokens: 1\n")
    value = config("@", str(first), f"@{second}", "--names", "b")
    assert (value.row_tokens, value.strategy, value.names, value.optimizer.lr) == (16, "in_order", ["b"], 1e-3)


def test_yaml_is_version_1_2(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("row_tokens: 8\nnames: [no, on]\nshare: 1e-4\n")
    value = config("@", str(recipe))
    assert (value.names, value.share) == (["no", "on"], 1e-4)


def test_faults_of_a_recipe_name_its_line(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('fast = true\nrow_tokens = "x"\n[optimizer]\nlrr = 1.0\n')
    assert faults("@", str(recipe)) == [
        f"{recipe}:2: row_tokens: 'x': expected a whole number",
        f"{recipe}:4: optimizer.lrr: no such option of mill; did you mean optimizer.lr?",
    ]


def test_a_recipe_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("row_tokens = = 3")
    assert "line 1" in faults("@", str(recipe))[0]
    assert "No such file" in faults("@", str(tmp_path / "none.toml"))[0]


def test_help_says_every_field_with_its_type_default_and_meaning() -> None:
    declared = Declaration(Source(Path(__file__).read_text(encoding="utf-8")))
    text = stage_help(declared)
    assert text.startswith("Grind rows into meal.")
    assert [option.path for option in declared.options] == list(options(Mill))
    for option in declared.options:
        assert f"--{option.path.rpartition('.')[2].replace('_', '-')}" in text
        assert option.doc in text
        assert option.doc
    assert "(required)" in text
    assert "best_fit|in_order" in text


def test_the_last_flag_of_a_single_value_wins() -> None:
    said = {"row_tokens": [Given("8", "--row-tokens", True), Given("9", "--row-tokens", True)]}
    assert resolve(Mill, said, "mill").row_tokens == 9


def test_flags_win_over_recipes_wherever_they_stand(tmp_path: Path) -> None:
    recipe, other = tmp_path / "r.toml", tmp_path / "s.toml"
    recipe.write_text("row_tokens = 8\nshare = 0.25\n[optimizer]\nlr = 0.5\n")
    other.write_text("row_tokens = 9\n")
    for argv in (["--lr", "0.1", "@", str(recipe)], ["@", str(recipe), "--optimizer.lr", "0.1"]):
        value = config(*argv)
        assert (value.optimizer.lr, value.row_tokens, value.share) == (0.1, 8, 0.25)
    both = config("--share", "1", "@", str(recipe), "@", str(other))
    assert (both.share, both.row_tokens) == (1, 9)
    assert config("@", str(other), "@", str(recipe)).row_tokens == 8
