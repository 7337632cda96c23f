"""Every optimizer: state in checkpoints brings back the very numbers; each against torch or its formula."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from types import SimpleNamespace  # noqa: E402

from postmill.io.errors import ConfigError  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.train.config import Train  # noqa: E402
from postmill.stages.train.optimizer import Learner, restore_state, set_lr, state_tensors  # noqa: E402
from postmill.stages.train.optimizers import OPTIMIZERS, Lion, Sgd  # noqa: E402
from postmill.stages.train.parallel.replicated import Replicated  # noqa: E402
from postmill.stages.train.plan import check_request  # noqa: E402


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


@pytest.mark.parametrize("name", OPTIMIZERS.table)
def test_state_brings_back_the_very_numbers(name):
    cfg = make(Train, optimizer=name)
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
