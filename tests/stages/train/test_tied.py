"""The gradient of a tied weight: row by row, and the same as autograd's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import start, write_model

from postmill.stages.train.tied import share_gradient
from postmill.stages.train.tuners.full import Full

IDS = torch.tensor([[3, 7, 7, 60, 3, 3, 0]])


def gradient(model: Any, times: int = 2) -> torch.Tensor:
    """Of the tied weight, over a few backward passes whose logits come from the same weight."""
    model.zero_grad()
    for _ in range(times):
        logits = model(input_ids=IDS).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], IDS[0, 1:]).backward()
    found: torch.Tensor = model.get_input_embeddings().weight.grad.clone()
    return found


@pytest.mark.parametrize("padding", [None, 7])
def test_equals_autograd(tmp_path: Path, padding: int | None) -> None:
    model = start(Full(), write_model(tmp_path, pad_token_id=padding))
    expected = gradient(model)
    assert share_gradient(model)
    torch.testing.assert_close(gradient(model), expected, rtol=1e-6, atol=1e-7)


def test_makes_no_second_dense_gradient(tmp_path: Path) -> None:
    model = start(Full(), write_model(tmp_path))
    assert share_gradient(model)
    hidden = model.get_input_embeddings()(IDS)
    reached: list[Any] = [hidden.grad_fn]
    for node in reached:  # grows as it is walked
        reached += [following for following, _ in node.next_functions if following is not None]
    assert not any("Embedding" in node.name() for node in reached)


def test_without_the_head_the_rows_alone(tmp_path: Path) -> None:
    model = start(Full(), write_model(tmp_path))
    share_gradient(model)
    embedding = model.get_input_embeddings()
    embedding(IDS).sum().backward()
    expected = torch.zeros(61).index_add(0, IDS[0], torch.ones(IDS.shape[1]))
    assert torch.equal(embedding.weight.grad, expected[:, None].expand(-1, 24))


@pytest.mark.parametrize("change", ["untied", "frozen", "other kind"])
def test_leaves_others_alone(tmp_path: Path, change: str) -> None:
    model = start(Full(), write_model(tmp_path, tied=change != "untied"))
    embedding = model.get_input_embeddings()
    if change == "frozen":
        embedding.weight.requires_grad_(False)
    if change == "other kind":

        class Scaled(torch.nn.Embedding):
            pass

        other = Scaled(61, 24)
        other.weight = embedding.weight
        model.set_input_embeddings(other)
    assert not share_gradient(model)


def test_nothing_to_do_without_gradients(tmp_path: Path) -> None:
    model = start(Full(), write_model(tmp_path))
    share_gradient(model)
    with torch.no_grad():
        assert not model.get_input_embeddings()(IDS).requires_grad
