"""The direction of dependencies in the Rust core, between its folders and among its templates, from their own words.

A file may use files of its own group and of groups before it. What `mod.rs` defines (errors, options, the compiled
template) is every file's; so are the crate's types and errors, which use nothing.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parent.parent / "ext/rust/core/src"
TEMPLATE = CORE / "template"
GROUPS = (
    {"text", "printable", "fuel", "date", "source"},
    {"lexer", "names", "ast", "parse", "parse_expr", "scope", "clean"},
    {"value", "number", "print", "marks", "args", "form", "row"},
    {"interp", "eval", "ops", "format", "filters", "text_filters", "sequences", "methods", "is_tests"},
    {"plan"},
    {"render", "probe", "prompt", "content", "turns"},
)
"""Words, syntax, values, interpreter, plans, turns."""

LEVEL = {name: level for level, group in enumerate(GROUPS) for name in group}
FILES = sorted(p for p in TEMPLATE.rglob("*.rs") if p.name not in ("mod.rs", "tests.rs") or p.parent != TEMPLATE)
USE = re.compile(r"\bsuper::(?!super\b)(\{[^}]*\}|\w+)")
OUTER = re.compile(r"\bsuper::super::(?!super\b)(\{[^}]*\}|\w+)")


def used(path: Path) -> set[str]:
    """Modules of `template` that a file names."""
    found = (OUTER if path.parent != TEMPLATE else USE).findall(path.read_text(encoding="utf-8"))
    return {name for item in found for name in re.findall(r"\w+", item)} & LEVEL.keys()


def name_of(path: Path) -> str:
    return path.stem if path.parent == TEMPLATE else path.parent.name


def test_every_file_of_templates_has_its_place() -> None:
    assert {name_of(path) for path in FILES} == LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(TEMPLATE)))
def test_template_files_use_what_stands_before_them(path: Path) -> None:
    higher = {name for name in used(path) if LEVEL[name] > LEVEL[name_of(path)]}
    assert not higher, f"{path.relative_to(CORE)} uses {sorted(higher)}, which are built on it"


FOLDERS = (
    *("error", "types", "json", "arrow", "input", "pack", "tokenizer", "template"),
    *("weigh", "agents", "media", "rows", "encode"),
)
"""A folder (or file beside `lib.rs`) of the crate uses those before it only, so there is no circle."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_of_the_core_use_what_stands_before_them(folder: str) -> None:
    paths = [path for path in (CORE / f"{folder}.rs", *(CORE / folder).rglob("*.rs")) if path.exists()]
    code = [re.sub(r"//.*", "", path.read_text(encoding="utf-8")) for path in paths if path.stem != "tests"]
    named = {
        name for text in code for name in re.findall(r"\bcrate::(\w+)", re.split(r"#\[cfg\(test\)\]\s*mod", text)[0])
    }
    assert named <= {folder, *FOLDERS[: FOLDERS.index(folder)]}, f"{folder} uses what is built on it"


def test_every_folder_of_the_core_has_its_place() -> None:
    assert {path.stem for path in CORE.iterdir()} - {"lib"} == set(FOLDERS)


ITEM = re.compile(r"\bpub(?:\([^)]*\))? (?:const |unsafe )*(?:fn|struct|enum|trait|const|static|type|mod) (\w+)")


def test_what_is_public_in_the_core_is_used_by_somebody() -> None:
    """By the core itself, by Python's face of it, an example or a fuzzer; a test alone is no reason."""
    everywhere = [
        path for path in CORE.parents[1].rglob("*.rs") if path.name != "tests.rs" and "tests" not in path.parts
    ]
    texts = {
        path: re.sub(r"//.*", "", path.read_text(encoding="utf-8")) for path in everywhere if "target" not in path.parts
    }
    code = {path: re.split(r"#\[cfg\(test\)\]\s*(?:mod \w+ \{|pub)", text)[0] for path, text in texts.items()}
    named = Counter(name for text in code.values() for name in re.findall(r"\w+", text))
    items = {name: path for path, text in code.items() if CORE in path.parents for name in ITEM.findall(text)}
    assert len(items) > 500
    unused = [f"{path.relative_to(CORE)}: {name}" for name, path in items.items() if named[name] < 2]
    assert not unused, f"nobody uses {', '.join(unused)}"
