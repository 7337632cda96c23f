"""A model of random weights learns to read real handwritten digits."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pictures" / "digits.py"
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")


def example() -> object:
    spec = importlib.util.spec_from_file_location("digits", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_held_out_digits_are_read(tmp_path: Path) -> None:
    assert example().run(tmp_path) >= 0.94
