"""Models of random weights learn from pictures, through our own stages, in the processor time that is promised."""

import importlib
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "pictures"
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_held_out_digits_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = example("digits", monkeypatch).run(tmp_path)
    assert found.accuracy >= 0.94
    assert found.train_s <= 120


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_held_out_digits_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = example("boxes", monkeypatch).run(tmp_path)
    assert found.accuracy >= 0.95
    assert found.train_s <= 300
