"""The direction of dependencies, and what a stage may load before it works, from the code and real processes."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cli", "stages", "kernels", "io")
ALLOWED = {
    "cli": {"cli", "stages", "io", "kernels", "_native"},
    "stages": {"stages", "io", "kernels", "_native", "_C"},
    "kernels": {"kernels", "_native", "_C"},
    "io": {"io", "_native"},
}
MODULES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
STAGES = sorted(p.parent.name for p in (ROOT / "stages").glob("*/config.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path: Path) -> set[str]:
    """Full names of everything a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


REFERENCE = re.compile(r"(postmill(?:\.\w+)+):(\w+)")


def references(path: Path) -> set[tuple[str, str]]:
    """Every `module:attribute` of ours that a module holds as a string, as tables do."""
    constants = (node.value for node in ast.walk(parsed(path)) if _is_text(node))
    return {(found[1], found[2]) for text in constants if (found := REFERENCE.fullmatch(text))}


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_references_in_strings_are_held_to_the_same_rules() -> None:
    """What a string names is there, at the top of its module, and lies where an import might lead."""
    found_in = {path: references(path) for path in MODULES}
    assert sum(map(len, found_in.values())) > 100, "otherwise this would look at nothing"
    for path, module, attribute in ((path, *one) for path, found in found_in.items() for one in found):
        parts = path.relative_to(ROOT).parts
        file = (ROOT / Path(*module.split(".")[1:])).with_suffix(".py")
        assert file.is_file(), f"{path}: {module} is no module"
        assert attribute in top_level(file), f"{path}: {module} has no {attribute}"
        owner = module.split(".")[1:]
        assert owner[0] in ALLOWED[parts[0]], f"{path}: {parts[0]} refers to {module}"
        if parts[0] == "stages" and len(parts) > 2 and len(owner) > 2:
            assert owner[1] in (parts[1], "shared"), f"{path}: a stage refers to another, {module}"


@functools.cache
def top_level(path: Path) -> set[str]:
    """Names that a module defines or imports at its top level."""
    names: set[str] = set()
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


PICKLES = {"stages/merge/mcore/torch_dist.py"}
"""Who reads and writes another tool's pickles: by a list of what may be in them."""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "postmill" and len(parts) > 1:
            assert parts[1] in ALLOWED[folder], f"{path}: {folder} imports {name}"
        if folder == "io":
            assert parts[0] not in ("torch", "transformers"), f"{path}: io imports {name}"
        assert parts[0] != "pickle" or str(path.relative_to(ROOT)) in PICKLES, f"{path}: nothing is pickled"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_stage_imports_another(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    if parts[0] != "stages" or len(parts) < 3:
        return
    for name in imported(path):
        if name.startswith("postmill.stages."):
            assert name.split(".")[2] in (
                parts[1],
                "spec",
                "options",
                "tables",
                "protocol",
                "kept",
                "runner",
                "progress",
                "shared",
            ), f"{path}: {name}"


def test_the_import_name_holds_only_links() -> None:
    for folder in FOLDERS:
        assert (ROOT / "postmill" / folder).resolve() == ROOT / folder
        assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/__init__.py would shadow the standard library"


BANNED = {"torch", "transformers", "pandas", "datasets"}
_TELL = "import sys\n{}\nprint(' '.join(sorted(m for m in sys.modules if m in {!r})))"


def loaded_after(code: str) -> set[str]:
    """Banned modules that are loaded once `code` has run in a fresh interpreter."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", _TELL.format(code, BANNED)], capture_output=True, text=True, check=True
    )
    return set(run.stdout.splitlines()[-1].split())


def test_configs_load_nothing_heavy() -> None:
    code = "\n".join(f"import postmill.stages.{name}.config" for name in STAGES)
    also = {"pyarrow", "numpy", "polars"}
    tell = _TELL.format(code, BANNED | also)
    run = subprocess.run([sys.executable, "-P", "-c", tell], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("stage", [s for s in ("tokenize", "pack") if s in STAGES])
def test_data_stages_load_no_torch(stage: str) -> None:
    assert loaded_after(f"import postmill.stages.runner, postmill.stages.{stage}.run") == set()
