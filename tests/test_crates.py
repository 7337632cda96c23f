"""The bill of materials holds what is compiled in, and nothing without a licence."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def crates() -> Any:
    spec = importlib.util.spec_from_file_location("crates", ROOT / "docs" / "crates.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metadata(licence: str | None = "MIT/Apache-2.0") -> dict[str, Any]:
    """What cargo says of a crate of ours that needs `a`, which needs `b`; `t` is for tests alone."""

    def needs(**kinds: str | None) -> list[dict[str, Any]]:
        return [{"pkg": name, "dep_kinds": [{"kind": kind}]} for name, kind in kinds.items()]

    def package(name: str, licence: str | None) -> dict[str, Any]:
        return {"id": name, "name": name, "version": "1.0.0", "license": licence, "license_file": None}

    return {
        "workspace_members": ["ours"],
        "resolve": {
            "nodes": [
                {"id": "ours", "deps": needs(a=None, t="dev")},
                {"id": "a", "deps": needs(b=None)},
                {"id": "b", "deps": needs(a=None)},
                {"id": "t", "deps": []},
            ]
        },
        "packages": [package("ours", "MIT"), package("b", licence), package("a", "MIT"), package("t", None)],
    }


def test_what_is_compiled_in_is_listed_with_its_licence(crates: Any) -> None:
    made = crates.bill(metadata())["components"]
    assert [(one["name"], one["licenses"][0]["expression"]) for one in made] == [
        ("a", "MIT"),
        ("b", "MIT OR Apache-2.0"),
    ]
    assert made[0]["purl"] == "pkg:cargo/a@1.0.0"


def test_a_crate_without_a_licence_is_named(crates: Any) -> None:
    with pytest.raises(ValueError, match="no licence: b"):
        crates.bill(metadata(licence=None))
