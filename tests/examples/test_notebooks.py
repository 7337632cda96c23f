"""Notebooks run from first cell to last, on a model of toy size, and hold no output of somebody's machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import tiny_tokenizer

BOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer; the model's weights are added where a notebook trains."""
    folder = tiny_tokenizer.write_tokenizer(tmp_path_factory.mktemp("notebooks") / "base")
    (folder / "config.json").write_text("{}")
    return folder


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((BOOKS / name).read_text(encoding="utf-8"))["cells"]
    return found


def run(name: str, **parameters: Any) -> dict[str, Any]:
    """Each cell in turn, in one namespace. Parameters come behind the cell with that tag."""
    space: dict[str, Any] = {}
    said = False
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), space)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(parameters) <= set(space), "a parameter that the notebook has"
            space |= parameters
            said = True
    assert said
    return space


def test_notebooks_are_saved_without_output() -> None:
    for path in sorted(BOOKS.glob("*.ipynb")):
        assert cells(path.name)[0]["cell_type"] == "markdown"
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells(path.name)), path


def test_masks(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = run("masks.ipynb", MODEL=str(base))
    assert (made["counts"].rows_in, made["counts"].kept, made["counts"].num_dropped) == (3, 2, 1)
    first, weighed = made["rows"].numpy(0), made["again"].numpy(0)
    assert set(first["weights"].tolist()) == {0.0, 1.0} and 2.0 in weighed["weights"]
    assert (weighed["weights"] != 0).sum() < (first["weights"] != 0).sum(), "what the tool answered is not learned"


def test_first_fine_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path)
    made = run("first-fine-tune.ipynb", MODEL="base", STEPS=3)
    assert len(made["losses"]) == 3 and made["losses"][-1] < made["losses"][0]
    assert made["tuned"].kind == "model" and made["answers"].kind == "eval"


def write_base(folder: Path) -> None:
    """A model of a few thousand weights that answers chats, in `folder/base`."""
    tiny_model.write_model(folder / "base", vocab_size=263)
    (folder / "base" / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.write_tokenizer(folder / "base")


def test_dpo_from_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path)
    made = run("dpo-from-rewards.ipynb", MODEL="base", SAMPLES=3, LENGTH=6)
    assert made["steps"][0]["loss"] == pytest.approx(0.6931, abs=1e-3), "the reference is the model before training"
    assert made["run"].kind == "adapter"


@pytest.mark.slow
def test_quantize_serve_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("uvicorn")
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path)
    made = run("quantize-serve-eval.ipynb", MODEL="base", GROUP=-1)
    assert made["small"].kind == "model" and made["server"].returncode == 0
    assert made["answers"].manifest.metrics["num_items"] == 1 and made["answers"].manifest.metrics["num_errors"] == 0
