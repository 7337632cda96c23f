"""Help comes at once and loads nothing heavy; mistakes on the command line end with 2 and one line."""

import importlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from commands import postmill as run

from postmill.cli.declaration import REQUIRED, read_declaration
from postmill.cli.main import TOOLS
from postmill.stages.options import bare, options
from postmill.stages.table import STAGES


@pytest.mark.parametrize("command", [*STAGES, *TOOLS])
def test_help_is_printed_and_exits_0(command: str) -> None:
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: postmill" in done.stdout


def test_help_loads_less_than_parsing_does() -> None:
    """The bar is a 20th of `import transformers`. A loaded machine cannot time that, but imports are what costs."""
    code = "import sys; from postmill.cli.main import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    for stage in STAGES:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, stage, "--help"], capture_output=True, text=True, check=True
        )
        assert {"msgspec", "numpy", "pyarrow", "torch", "inspect", "pathlib"}.isdisjoint(done.stderr.split())


@pytest.mark.parametrize("argv", ["tokenize {} -m {} -o {}/out", "pack {} -o {}/out --row-tokens 64"])
def test_a_start_looks_for_no_garbage_and_the_work_does(argv: str, tmp_path: Path) -> None:
    """Collections while modules load were an eighth of a start; whoever works must have them again."""
    said = "print(gc.isenabled(), gc.get_stats()[0]['collections'], file=sys.stderr)"
    code = f"import gc, sys; from postmill.cli.main import main\ntry: main()\nfinally: {said}"
    words = argv.replace("{}", str(tmp_path)).split()
    done = subprocess.run([sys.executable, "-P", "-c", code, *words], check=False, capture_output=True, text=True)
    assert done.returncode in (65, 66), done.stderr
    is_enabled, collections = done.stderr.split()[-2:]
    assert is_enabled == "True" and int(collections) < 50  # 74 where it looked all the time


@pytest.mark.parametrize("name", STAGES)
def test_help_reads_from_the_source_what_the_stage_declares(name: str) -> None:
    declared, stage = read_declaration(name), importlib.import_module(f"postmill.stages.{name}.config").STAGE
    assert (declared.name, declared.example) == (stage.name, stage.example)
    chosen: dict[str, str] = {}
    while True:  # every name of every choice
        declared = read_declaration(name, [word for path, pick in chosen.items() for word in (f"--{path}", pick)])
        fields = options(stage.config, chosen)
        assert [option.path for option in declared.options] == list(fields)
        for option in declared.options:
            field = fields[option.path]
            assert option.default == (REQUIRED if field.default is msgspec.NODEFAULT else field.default)
            assert (option.kind == "bool") == (bare(field.kind) is bool)
            assert option.doc
        left = [
            (p, n) for p, names in declared.choices.items() for n in names[names.index(chosen.get(p, names[0])) + 1 :]
        ]
        if not left:
            break
        chosen |= dict([left[0]])
    assert set(declared.first) <= set(options(stage.config))
    ports = {name: {key: getattr(port, key) for key in declared.ports[name]} for name, port in stage.inputs.items()}
    assert declared.ports == ports


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        (["tokenise"], 2, "tokenise: no such command; did you mean tokenize?; see postmill --help"),
        (["pack", "nowhere/", "--row-tokens", "8", "-o", "x"], 66, "nowhere: no such artifact"),
        (["pack", "--row-tokens", "8"], 2, "no output; pass -o DIR"),
        (["verify"], 2, "usage: postmill verify"),
        (["inspect", "nowhere/"], 66, "nowhere: no such artifact"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(argv: list[str], code: int, line: str, tmp_path: Path) -> None:
    done = run(*argv, cwd=tmp_path)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
