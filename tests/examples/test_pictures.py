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
@pytest.mark.parametrize(
    ("name", "least", "most_s"), [("digits", 0.94, 120), ("boxes", 0.95, 300)], ids=["digits", "boxes"]
)
def test_held_out_digits_are_read_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, least: float, most_s: float
) -> None:
    found = example(name, monkeypatch).run(tmp_path)
    assert found.accuracy >= least
    assert found.train_s <= most_s
