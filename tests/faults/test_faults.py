"""Kill and starve the data stages at every file operation they make."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import token_tables
from faults.lab import Lab, open_lab
from faults.laws import survives_full_disk, survives_kills


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    modules = ("postmill.cli.stage_command", "postmill.stages.runner", "postmill.stages.pack.run")
    with open_lab(tmp_path_factory.mktemp("lab"), *modules) as lab:
        yield lab


@pytest.fixture(scope="module")
def pack_argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    batches = token_tables.to_batches(token_tables.random_rows(0, 40))
    tokens = token_tables.write_tokens(tmp_path_factory.mktemp("in") / "tokens", batches)
    return ["pack", str(tokens), "--row-tokens", "64", "-q"]


def test_pack_killed_anywhere_leaves_nothing_half(lab: Lab, pack_argv: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    operations = survives_kills(lab, [*pack_argv, "-o", str(folder / "packed")], folder, folder / "packed")
    assert operations > 8  # the injector saw the writes: a test that counts nothing proves nothing


def test_pack_with_a_full_or_broken_disk_says_so_in_one_line(lab: Lab, pack_argv: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    survives_full_disk(lab, [*pack_argv, "-o", str(folder / "packed")], folder, folder / "packed")
