"""Documents and programs say the same: every flag in a document exists, every flag has help, every exit code a row."""

import functools
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from postmill.cli.declaration import read_declaration
from postmill.cli.flags import resolve
from postmill.cli.help import COMMON, SHARD, flag_name, stage_help
from postmill.cli.launch import parse as parse_launch
from postmill.cli.main import TOOLS
from postmill.cli.stage_command import parse
from postmill.io import errors
from postmill.io.errors import ConfigError
from postmill.stages.options import Option, options, short_names
from postmill.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.stem != "support")]
"""The page `support` is made of what tests say of themselves, which is not about our commands."""
FOREIGN = {"--requeue", "--signal", "--wrap", "--nnodes", "--nproc-per-node", "--packing"}
"""Flags of other programs: Slurm, torchrun, ms-swift."""


@functools.cache
def flags_of(command: str) -> set[str]:
    """Every flag of a stage, or those that a tool's usage names. Thousands of words are looked up in it."""
    if command in TOOLS:
        module = importlib.import_module(f"postmill.cli.{command}")
        return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", getattr(module, "USAGE", "")))
    stage = importlib.import_module(f"postmill.stages.{command}.config").STAGE
    names = {name for known in with_every_choice(stage.config) for name in short_names(known)}
    negated = {f"--no-{flag_name(name)[2:]}" for name in names}
    return {flag_name(name) for name in names} | negated | {p.flag for p in stage.inputs.values() if p.flag}


def with_every_choice(config: type) -> list[dict[str, Option]]:
    """The options of a config, once for each name of each choice."""
    found = [options(config)]
    for path, option in found[0].items():
        if option.choice is not None:
            found += [options(config, {path: name}) for name in option.choice.table]
    return found


@pytest.mark.parametrize("command", STAGES)
def test_every_flag_of_a_stage_has_help(command: str) -> None:
    text = stage_help(read_declaration(command))
    stage = importlib.import_module(f"postmill.stages.{command}.config").STAGE
    known = options(stage.config)
    names = {path: name for name, path in sorted(short_names(known).items(), key=lambda item: -len(item[0]))}
    for path in known:
        shown = re.search(rf"^  {re.escape(flag_name(names[path]))}[ ,][^\n]*\n((?: {{8}}[^\n]+\n)*)", text, re.M)
        assert shown is not None and len(shown[1].split()) >= 3, f"{command} {flag_name(path)}: no help"
    for port in stage.inputs.values():
        assert port.flag in text and port.help.split()[0] in text


def commands_in(page: Path) -> list[list[str]]:
    """Every command of ours in the blocks of a page, as words; the parts of a pipe one by one."""
    text = re.sub(r"\\\n +", "", page.read_text(encoding="utf-8"))  # a command over two lines
    lines = [line.strip().removeprefix("$ ") for line in re.findall(r"^ {4}.+$", text, re.M)]
    lines += [
        line for block in re.findall(r"^```(?:sh|console)?\n(.*?)^```", text, re.M | re.S) for line in block.split("\n")
    ]
    found = []
    for line in lines:
        if not line.lstrip().startswith("postmill ") or "..." in line or "error:" in line:
            continue
        words = shlex.split(line, comments=True)
        while "|" in words:
            found.append(words[: words.index("|")])
            words = words[words.index("|") + 1 :]
        found.append(words)
    return [words[1:] for words in found if words[0] == "postmill"]


def check_command(words: list[str]) -> None:
    """The real parser takes the command, and its config resolves. Files that it names need not be there."""
    name, *argv = words
    if name == "launch":
        name, *argv = parse_launch(argv).command
    if name not in STAGES:
        assert name in TOOLS, f"{name}: no such command"
        said = {word.partition("=")[0] for word in argv if word.startswith("-") and word != "-"}
        assert said <= flags_of(name), f"{name}: {said - flags_of(name)}"
        return
    while "@" in argv and not Path(argv[argv.index("@") + 1]).exists():
        del argv[argv.index("@") : argv.index("@") + 2]
        argv += ["--row-tokens", "8"] if name == "pack" and "--row-tokens" not in argv else []
    stage = importlib.import_module(f"postmill.stages.{name}.config").STAGE
    call = parse(stage, argv)
    resolve(stage.config, call.said, name)
    missing = [port for port, values in call.inputs.items() if stage.inputs[port].required and not values]
    assert not missing, f"{name}: no {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_in_a_document_is_one(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands_in(page):
        check_command(words)


def test_the_check_of_commands_finds_mistakes() -> None:
    for wrong in (
        "train packed/ -m base/ -o run/ --lora-rank 8",
        "packs tokens/ -o packed/",
        "pack tokens/ -o packed/",
    ):
        with pytest.raises((ConfigError, AssertionError)):
            check_command(shlex.split(wrong))


@pytest.mark.parametrize("page", [page for page in PAGES if "coming-from" not in page.stem], ids=lambda page: page.stem)
def test_every_flag_in_a_document_exists(page: Path) -> None:
    known = {flag for command in [*STAGES, *TOOLS] for flag in flags_of(command)} | set(COMMON) | set(SHARD) | FOREIGN
    text = page.read_text(encoding="utf-8")
    ours = "\n".join(re.findall(r"^ {4}.*postmill.*$", text, re.M) + re.findall(r"`[^`]*`", text))
    said = {flag.rstrip("-") for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", ours)}
    assert sorted(flag for flag in said - known if "_" not in flag) == []  # ms-swift writes underscores, we never do


@pytest.mark.parametrize("page", [page for page in PAGES if "coming-from" in page.stem], ids=lambda page: page.stem)
def test_every_flag_that_somebody_comes_to_is_one_of_that_command(page: Path) -> None:
    rows = re.findall(r"^\|(.+)\|$", page.read_text(encoding="utf-8"), re.M)[2:]
    assert len(rows) >= 15
    checked = 0
    for row in rows:
        command = ""
        for span in re.findall(r"`([^`]*)`", re.split(r"(?<!\\)\|", row)[1]):
            for word in span.replace("\\|", " ").split():
                command = word if word in STAGES or word in TOOLS else command
                if word.startswith("--"):
                    assert command, f"{row}: {word} of which command?"
                    assert word in flags_of(command) | set(COMMON), f"{row}: {command} has no {word}"
                    checked += 1
    assert checked >= 15


def test_every_exit_code_has_a_row_and_every_row_a_code() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = {int(code) for cell in re.findall(r"^\| ([^|]+) \|", page, re.M) for code in re.findall(r"\d+", cell)}
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert rows == codes | {0, 130, 141, 143}


def test_generated_pages_are_as_the_code_makes_them() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name in generate.PAGES:
        wanted = generate.made(name)
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == wanted, "run python docs/generate.py"
