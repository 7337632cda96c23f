"""Documents and programs say the same: every flag in a document exists, every flag has help, every exit code a row."""

import importlib
import re
from pathlib import Path

import pytest

from postmill.cli.declaration import read_declaration
from postmill.cli.help import COMMON, flag_name, stage_help
from postmill.cli.main import TOOLS
from postmill.io import errors
from postmill.stages.options import Option, options, short_names
from postmill.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOREIGN = {"--requeue", "--signal", "--wrap", "--nnodes", "--nproc-per-node", "--packing"}
"""Flags of other programs: Slurm, torchrun, ms-swift."""


def flags_of(command: str) -> set[str]:
    """Every flag of a stage, or those that a tool's usage names."""
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_flag_in_a_document_exists(page: Path) -> None:
    known = {flag for command in [*STAGES, *TOOLS] for flag in flags_of(command)} | set(COMMON) | FOREIGN
    text = page.read_text(encoding="utf-8")
    ours = "\n".join(re.findall(r"^ {4}.*postmill.*$", text, re.M) + re.findall(r"`[^`]*`", text))
    said = {flag.rstrip("-") for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", ours)}
    if page.stem == "coming-from-ms-swift":
        return  # half of it is another program's flags
    assert sorted(flag for flag in said - known if "_" not in flag) == []  # ms-swift writes underscores, we never do


def test_every_exit_code_has_a_row_and_every_row_a_code() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = {int(code) for cell in re.findall(r"^\| ([^|]+) \|", page, re.M) for code in re.findall(r"\d+", cell)}
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert rows == codes | {0, 130, 141, 143}
