"""The direction of dependencies, and what a stage may load before it works, from the code and real processes."""

import ast
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


def imported(path: Path) -> set[str]:
    """Full names of everything a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
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
