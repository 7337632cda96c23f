"""Manual pages say what `--help` says, and roff prints them as they are."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from postmill.cli.main import TOOLS
from postmill.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def man() -> Any:
    spec = importlib.util.spec_from_file_location("man", ROOT / "docs" / "man.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_a_page_with_its_name(man: Any, tmp_path: Path) -> None:
    pages = man.write(tmp_path)
    assert [path.stem.removeprefix("postmill-") for path in pages] == [*STAGES, *TOOLS]
    for path in pages:
        text = path.read_text()
        assert re.search(r"^\.SH NAME\npostmill\\-[a-z]+ \\- \S", text, re.M)
        body = text.partition(".nf\n")[2].partition(".fi\n")[0]
        assert not re.search(r"^[.']", body, re.M), "a line that roff would take for a command"


@pytest.mark.parametrize("command", ["pack", "again"])
def test_what_is_printed_is_the_help(man: Any, tmp_path: Path, command: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    path = tmp_path / "page.1"
    path.write_text(man.page(command))
    argv = ["groff", "-man", "-Tutf8", "-P-c", "-rLL=200n", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    printed = " ".join(re.sub(r".\x08", "", done.stdout).split())
    for line in man.help_of(command).splitlines():
        assert " ".join(line.split()) in printed
