"""Pre-training's z-loss, EAFT and focal loss against a float64 computation on the model's own logits."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from agreement import against  # noqa: E402

from postmill.io.packed import PackedReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.shared import attention, hf  # noqa: E402
from postmill.stages.shared.forward import Forward  # noqa: E402
from postmill.stages.train.columns import BatchSource  # noqa: E402
from postmill.stages.train.config import Train  # noqa: E402
from postmill.stages.train.objectives.adaptive_options import Eaft, Focal  # noqa: E402
from postmill.stages.train.objectives.options import Sft  # noqa: E402
from postmill.stages.train.objectives.pretrain_options import Pretrain  # noqa: E402
from postmill.stages.train.parallel.replicated import Replicated  # noqa: E402
from postmill.stages.train.plan import Steps  # noqa: E402
from postmill.stages.train.step import accumulate  # noqa: E402

from . import laws  # noqa: E402


def z_loss(logp, entropy, lse):
    return -logp + 0.01 * lse**2


def eaft(logp, entropy, lse):
    return (entropy.detach() / math.log(20)) ** 1.5 * -logp


def focal(logp, entropy, lse):
    return (1 - logp.exp()) ** 2 * -logp


CASES = {
    "pretrain": (Pretrain(z_loss=0.01), z_loss),
    "pretrain-plain": (Pretrain(normalize="weights"), lambda logp, entropy, lse: -logp),
    "eaft": (Eaft(alpha=1.5, normalize="rows"), eaft),
    "focal": (Focal(), focal),
    "focal-0": (Focal(gamma=0), lambda logp, entropy, lse: -logp),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("adaptive")
    base = tiny_model.write_model(folder / "base")
    laws.write_twice(folder, "packed", base, tiny_model.make_rows(14, seed=3))
    return folder


@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_gradient_are_those_of_the_formula(world, name):
    options, formula = CASES[name]
    reader = PackedReader(world / "packed")
    net = hf.load_model(world / "base", "float32")
    cfg = make(Train, objective=options, tuner="full", bins_per_step=len(reader))
    source, accelerator = BatchSource(reader, options.needs), Accelerator(cpu=True)
    ours = hf.load_model(
        world / "base", "float32", attention=attention.choose("rows", torch.device("cpu"), torch.float32)
    )
    forward = Forward(ours, compute_dtype=torch.float32, backend="reference").eval()
    step = Steps(cfg, reader, 1)[0]
    got = accumulate(cfg, forward, options.build(), source, step, layout=Replicated(accelerator))

    net = net.double()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(reader.num_rows):
        laid = reader.token_rows.lay(np.array([row]))
        ids = torch.from_numpy(laid.input_ids.astype(np.int64))
        logits = net(ids[None]).logits[0, :-1]
        lse = logits.logsumexp(-1)
        logp_TV = logits - lse[:, None]
        entropy = -(logp_TV.exp() * logp_TV).sum(-1)
        logp = logp_TV.gather(1, ids[1:, None])[:, 0]
        total = total + (torch.from_numpy(laid.weights[1:]).double() * formula(logp, entropy, lse)).sum()
    total = total / step.normaliser
    assert float(got.loss) == pytest.approx(float(total.detach()), rel=1e-5)
    total.backward()
    gradients = [torch.cat([p.grad.double().flatten() for p in model.parameters()]) for model in (ours, net)]
    formula_of = "formula, the whole model in float64 beside ours in float32"
    against(name.partition("-")[0], formula_of, (got.loss, gradients[0]), (total, gradients[1]))
    for mine, theirs in zip(ours.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["pretrain", "eaft", "focal"])
def test_cuts_do_not_matter(world, name):
    laws.cuts_do_not_matter(CASES[name][0], (world / "packed", world / "packed-alone"), world / "base")


def test_pretraining_without_a_z_loss_is_sft(world):
    packed, base = world / "packed", world / "base"
    plain, fine = (laws.whole_step(o, packed, base, {}, 1) for o in (Pretrain(), Sft()))
    assert plain[0] == fine[0]
    assert torch.equal(plain[1], fine[1])
