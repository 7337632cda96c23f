"""Every optimizer: state in checkpoints brings back the very numbers; each against torch or its formula."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from types import SimpleNamespace  # noqa: E402

from postmill.io.errors import ConfigError  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.train.checks import check_request  # noqa: E402
from postmill.stages.train.config import Train  # noqa: E402
from postmill.stages.train.low_rank_optimizers import random_projector  # noqa: E402
from postmill.stages.train.optimizer import Learner, averaged, restore_state, set_lr, state_tensors  # noqa: E402
from postmill.stages.train.optimizers import (  # noqa: E402
    OPTIMIZERS,
    AdamW,
    AdamW8bit,
    Apollo,
    GaLore,
    Lion,
    QGaLore,
    ScheduleFree,
    Sgd,
)
from postmill.stages.train.parallel.replicated import Replicated  # noqa: E402
from postmill.stages.train.q_galore import decode_linear, encode_linear  # noqa: E402
from postmill.stages.train.small_state_optimizers import decode, dynamic_map, encode  # noqa: E402


def parameters():
    g = torch.Generator().manual_seed(0)
    shapes = {"embed_tokens.weight": (11, 6), "layer.weight": (6, 4), "layer.bias": (6,)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=g)) for name, shape in shapes.items()}


def learner(cfg, values):
    layout = Replicated(SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu")))
    return Learner(None, values, cfg.optimizer.make(values, 0.1), layout)


def take(found, steps):
    for step in steps:
        g = torch.Generator().manual_seed(100 + step)
        for p in found.parameters.values():
            p.grad = torch.randn(p.shape, generator=g)
        set_lr(found.optimizer, 0.01 * (step + 1))
        found.optimizer.step()


SMALL = {"q-galore": {"rank": 3, "gap": 2}, "galore": {"rank": 3, "gap": 2}, "apollo": {"rank": 3, "gap": 2}}
"""So that the matrices of a tiny model have moments of lower rank than themselves."""


@pytest.mark.parametrize("name", OPTIMIZERS.table)
def test_state_brings_back_the_very_numbers(name):
    cfg = make(Train, optimizer=name, tuner="full", **SMALL.get(name, {}))
    unbroken = learner(cfg, parameters())
    before = copy.deepcopy(unbroken.parameters)
    take(unbroken, range(3))
    assert all(not torch.equal(p, before[n]) for n, p in unbroken.parameters.items())
    saved = state_tensors(unbroken, keep=True)
    assert saved
    resumed = learner(cfg, copy.deepcopy(unbroken.parameters))
    restore_state(resumed, {key: value.clone() for key, value in saved.items()}, "here")
    take(unbroken, range(3, 6))
    take(resumed, range(3, 6))
    for key, parameter in unbroken.parameters.items():
        assert torch.equal(parameter, resumed.parameters[key]), key


def test_lion_is_its_formula():
    values = parameters()
    p, mean = values["layer.weight"].detach().clone().double(), 0.0
    found = learner(make(Train, optimizer=Lion(weight_decay=0.2)), values)
    for step in range(4):
        take(found, [step])
        grad, lr = values["layer.weight"].grad.double(), 0.01 * (step + 1)
        p = p * (1 - lr * 0.2) - lr * torch.sign(0.9 * mean + 0.1 * grad)
        mean = 0.99 * mean + 0.01 * grad
    torch.testing.assert_close(values["layer.weight"].double(), p, rtol=1e-5, atol=1e-6)


def test_plain_descent_keeps_no_state():
    found = learner(make(Train, optimizer=Sgd(momentum=0.0)), parameters())
    take(found, range(2))
    assert state_tensors(found, keep=True) == {}
    restore_state(found, {}, "here")


def test_state_that_cannot_be_split_is_refused():
    with pytest.raises(ConfigError, match="the state of this optimizer cannot be split"):
        check_request(make(Train, optimizer="muon", shard="fsdp"))


def one_matrix(cfg, shape=(8, 5)):
    g = torch.Generator().manual_seed(1)
    values = {"layer.weight": torch.nn.Parameter(torch.randn(shape, generator=g))}
    return learner(make(Train, optimizer=cfg), values), values["layer.weight"]


def adam64(gradients, betas=(0.9, 0.95), eps=1e-8):
    """Adam's update after the last of `gradients`, in float64."""
    mean = square = 0.0
    for gradient in gradients:
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
    count = len(gradients)
    return mean / (1 - betas[0] ** count) / ((square / (1 - betas[1] ** count)).sqrt() + eps)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_galore_is_its_formula(shape):
    found, weight = one_matrix(GaLore(rank=2, gap=9, scale=0.5), shape)
    expected, seen = weight.detach().double().clone(), []
    for step in range(3):
        take(found, [step])
        gradient = weight.grad.double() if shape[0] >= shape[1] else weight.grad.double().T
        if not seen:
            main = torch.linalg.svd(gradient, full_matrices=False)[2][:2]
        seen.append(gradient @ main.T)
        change = 0.5 * adam64(seen) @ main
        expected -= 0.01 * (step + 1) * (change if shape[0] >= shape[1] else change.T)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.25)])
@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_q_galore_is_galore_but_for_the_rounding_of_its_codes(shape, bits, tolerance):
    plain, wanted = one_matrix(GaLore(rank=2, gap=9, scale=0.5), shape)
    found, weight = one_matrix(QGaLore(rank=2, gap=9, scale=0.5, bits=bits), shape)
    begun = weight.detach().clone()
    for step in range(3):
        take(plain, [step])
        take(found, [step])
    moved, expected = weight - begun, wanted - begun
    assert 0 < float((moved - expected).norm()) < tolerance * float(expected.norm())
    state = found.optimizer.state[weight].values()
    # neither projection nor moments are kept in float32
    assert not any(tensor.dtype == torch.float32 and tensor.numel() > 8 for tensor in state)


def test_q_galore_looks_less_often_at_a_direction_that_stays():
    found, weight = one_matrix(QGaLore(rank=2, gap=1, settled=0.9), (8, 5))
    looks, gradient = [], torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    for step in range(20):
        before = int(found.optimizer.state[weight].get("next", torch.tensor(0))) if found.optimizer.state[weight] else 0
        weight.grad = gradient.clone()
        found.optimizer.step()
        if int(found.optimizer.state[weight]["next"]) != before:
            looks.append(step)
    # five cosines of 1, then 2 steps, 4, 8
    assert looks == [0, 1, 2, 3, 4, 5, 7, 11, 19]


def test_codes_of_a_projection_are_within_half_a_step():
    values = torch.randn(700, generator=torch.Generator().manual_seed(2))
    for bits in (4, 8):
        codes, low, step = encode_linear(values, bits)
        assert codes.numel() == 768 * bits // 8
        error = (decode_linear(codes, low, step, bits, 700) - values).abs()
        assert bool((error <= 0.5001 * step.repeat_interleave(256)[:700]).all())


@pytest.mark.parametrize("rank", [1, 2])
def test_apollo_is_its_formula(rank):
    found, weight = one_matrix(Apollo(rank=rank, gap=9, scale=2.0))
    expected, seen, largest = weight.detach().double().clone(), [], None
    for step in range(3):
        take(found, [step])
        gradient = weight.grad.double()
        seen.append(gradient @ random_projector(0, 0, rank, weight).double().T)
        update = adam64(seen)
        by_row = torch.linalg.vector_norm(update, dim=1) / torch.linalg.vector_norm(seen[-1], dim=1)
        scale = by_row[:, None] if rank > 1 else update.norm() / seen[-1].norm()
        change = 2.0 * scale * gradient
        if largest is not None and change.norm() > 1.01 * largest:
            change *= 1.01 * largest / change.norm()
        largest = change.norm()
        expected -= 0.01 * (step + 1) * change
    torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=1e-5)


def test_schedule_free_is_its_formula():
    """x, y and z as the paper has them, in float64."""
    found, weight = one_matrix(ScheduleFree(weight_decay=0.1))
    x = z = y = weight.detach().double()
    square, total = 0.0, 0.0
    for step in range(4):
        take(found, [step])
        lr, gradient = 0.01 * (step + 1), weight.grad.double()
        square = 0.95 * square + 0.05 * gradient**2
        z = z - lr * (gradient / ((square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8) + 0.1 * y)
        total += lr**2
        x = (1 - lr**2 / total) * x + lr**2 / total * z
        y = 0.1 * z + 0.9 * x
    torch.testing.assert_close(weight.double(), y, rtol=1e-5, atol=1e-6)
    with averaged(found):
        torch.testing.assert_close(weight.double(), x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.double(), y, rtol=1e-5, atol=1e-6)


def test_eight_bits_keep_what_matters():
    table = dynamic_map(signed=True)
    assert (len(table), len(dynamic_map(signed=False))) == (256, 256)
    assert len(set(table.tolist())) == 256
    g = torch.Generator().manual_seed(2)
    values = torch.randn(3, 1000, generator=g) * torch.logspace(-3, 0, 1000)
    codes, largest = encode(values, signed=True)
    assert (codes.dtype, codes.shape, largest.shape) == (torch.uint8, values.shape, (12,))
    back = decode(codes, largest, signed=True)
    near = values.abs() > 0.5
    assert float(((back - values).abs() / values.abs())[near].max()) < 0.06


def test_eight_bits_follow_adamw():
    """On a matrix large enough to be coded, the way taken is AdamW's within the codes' coarseness."""
    ways = {}
    for cfg in (AdamW(weight_decay=0.0), AdamW8bit(weight_decay=0.0)):
        found, weight = one_matrix(cfg, (70, 70))
        start = weight.detach().clone()
        take(found, range(8))
        ways[type(cfg)] = weight.detach() - start
    small = state_tensors(found, keep=True)
    assert small["layer.weight/exp_avg"].dtype == torch.uint8
    close = torch.nn.functional.cosine_similarity(ways[AdamW].flatten(), ways[AdamW8bit].flatten(), dim=0)
    assert float(close) > 0.99
