"""Things added by a package of somebody else's, through entry points: found, offered, checked, run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import tiny_model
import warm
from tiny_chat import write_chat_model

from postmill.io.rollouts import REWARDS
from postmill.io.schemas import REWARDS_V1
from postmill.io.table import TableReader

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402

PACKAGE = '''
"""One of each thing that Postmill does not have."""

from typing import Annotated, ClassVar, Literal

import msgspec
import pyarrow as pa
from msgspec import Meta

from postmill.io.kinds import Kind
from postmill.stages.spec import SAME_BYTES, Port, Stage
from postmill.stages.train.objectives.needs import Needs

MEAL_V1 = pa.schema([pa.field("grain", pa.utf8(), nullable=False)])
MEAL = Kind(tables={"meal.arrow": MEAL_V1}, stream=MEAL_V1)


class Steps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="halves"):
    """Halves the rate."""

    every: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the steps after which the rate is halved."""

    def share(self, done: float, rest: int, num_steps: int) -> float:
        return 0.5 ** int(done / self.every)


class Sums(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sums"):
    """Steps against the sign of the gradient."""

    shards: ClassVar[bool] = True
    shrink: float = 0.0
    """Weight decay."""

    def make(self, parameters, lr):
        import torch

        return torch.optim.SGD(list(parameters.values()), lr=lr, weight_decay=self.shrink)


class Norms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="norms"):
    """Trains norms, nothing else."""

    default_lr: ClassVar[float] = 1e-3
    makes: ClassVar[str] = "model"
    also: str = "nothing"
    """Another word in names."""

    def build(self):
        from postmill.stages.train.tuners.full import all_tensors, load_whole, save_model
        from postmill.stages.train.tuners.interface import Tuner

        def start(given):
            model = load_whole(given)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("norm" in name or self.also in name)
            return model

        return Tuner(start, all_tensors, save_model)


class Brier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="brier"):
    """Squared distance of each token's probability from 1."""

    normalize: Literal["tokens", "rows"] = "tokens"
    """What the sum is divided by."""

    @property
    def needs(self):
        return Needs(stats=frozenset({"logp"}), measures=(self.normalize,))

    def build(self):
        from mill_extras.grind.brier import BrierLoss

        return BrierLoss(self)


class Echo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="echo"):
    """Says one token."""

    token: int = 5
    """It."""

    def open(self, wanted):
        from contextlib import nullcontext

        from mill_extras.grind.echo import EchoEngine

        return nullcontext(EchoEngine(self.token, wanted))


class Summed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="summed"):
    """Sums gradients after the last micro-batch."""

    cuts_model: ClassVar[bool] = False
    one_by_one: bool = True
    """Send each gradient in a message of its own."""

    def build(self, form, accelerator):
        from mill_extras.grind.summed import SummedLayout

        return SummedLayout(accelerator, self.one_by_one)


def fives(row):
    return float(row.num_tokens == 5)


class Grind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Grind words."""

    loud: bool = False
    """Write in capitals."""
    threads_hint: Annotated[int, SAME_BYTES] = 1
    """Changes nothing."""


STAGE = Stage(
    name="grind",
    version=1,
    config=Grind,
    inputs={"words": Port(kinds=("file",), help="words, one a line")},
    output="meal",
    package="mill_extras.grind",
    example="postmill grind words.txt -o meal/",
)
'''
RUN = """
import pyarrow as pa
from mill_extras.grind.config import MEAL_V1

from postmill.stages.protocol import Result


def run(cfg, inputs, out):
    words = inputs["words"][0].path.read_text().split()
    writer = out.table("meal.arrow", MEAL_V1)
    writer.write(pa.RecordBatch.from_pylist([{"grain": w.upper() if cfg.loud else w} for w in words], schema=MEAL_V1))
    writer.close()
    out.ledger.keep(len(words))
    return Result()
"""
BRIER = """
from postmill.stages.shared.asked import Ask
from postmill.stages.train.objectives.interface import Loss


class BrierLoss:
    def __init__(self, options):
        self.needs = options.needs

    def ask(self, batch, norms):
        return Ask(self.needs.stats)

    def loss(self, outputs, batch, norms, constants):
        [measure] = self.needs.measures
        missed = (batch.weights_T * (1 - outputs.logp_T.exp()) ** 2).sum()
        loss = missed / norms[measure]
        return Loss(loss, {"brier": loss.detach()}, {"missed": (missed.detach().double(), measure)})
"""
ECHO = """
from postmill.stages.shared.engine.protocol import About, Loaded, Reply


class EchoEngine:
    def __init__(self, token, wanted):
        self.token, self.loaded = token, Loaded(digest=wanted.digest, proof="claimed")
        self.about = About(kind="echo", versions={}, can=frozenset({"logp"}), max_tokens=None, stop_ids=frozenset())

    def batches(self, requests):
        return [requests]

    def answer(self, batch, sampling):
        many = sampling.max_new_tokens
        return [
            Reply(key=r.key, ids=[self.token] * many, logp=[0.0] * many, sampled_logp=[0.0] * many, finish="length")
            for r in batch
        ]
"""
SUMMED = """
from contextlib import contextmanager

import torch
import torch.distributed as dist

from postmill.stages.train.parallel.replicated import Replicated


class SummedLayout(Replicated):
    name = "summed"

    def __init__(self, accelerator, one_by_one):
        super().__init__(accelerator)
        self.one_by_one, self.trained = one_by_one, []

    def wrap(self, forward):
        self.trained = [parameter for parameter in forward.parameters() if parameter.requires_grad]
        return forward

    @contextmanager
    def gathering(self, module, *, last):
        yield
        gradients = [parameter.grad for parameter in self.trained] if last else []
        if gradients and self.one_by_one:
            for gradient in gradients:
                dist.all_reduce(gradient)
        elif gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients])):
                gradient.copy_(piece.view_as(gradient))

    def backward(self, loss):
        loss.backward()
"""
ENTRIES = """
[postmill.layouts]
summed = mill_extras.grind.config:Summed

[postmill.optimizers]
sums = mill_extras.grind.config:Sums

[postmill.tuners]
norms = mill_extras.grind.config:Norms

[postmill.objectives]
brier = mill_extras.grind.config:Brier

[postmill.engines]
echo = mill_extras.grind.config:Echo

[postmill.rewards]
fives = mill_extras.grind.config:fives

[postmill.stages]
grind = mill_extras.grind.config:STAGE

[postmill.kinds]
meal = mill_extras.grind.config:MEAL

[postmill.schedules]
halves = mill_extras.grind.config:Steps
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed package."""
    site = tmp_path_factory.mktemp("site")
    (site / "mill_extras" / "grind").mkdir(parents=True)
    (site / "mill_extras" / "grind" / "config.py").write_text(PACKAGE)
    for name, text in (("run", RUN), ("brier", BRIER), ("echo", ECHO), ("summed", SUMMED)):
        (site / "mill_extras" / "grind" / f"{name}.py").write_text(text)
    about = site / "mill_extras-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mill-extras\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    return site


def postmill(site: Path, *argv: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return warm.postmill(*argv, env={"PYTHONPATH": path})


def test_a_stage_and_a_kind(site: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("rye\noat\n")
    done = postmill(site, "grind", tmp_path / "words.txt", "-o", tmp_path / "meal", "--loud")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/meal\n"), done.stderr
    manifest = json.loads((tmp_path / "meal" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["stage"], manifest["counts"]["kept"]) == ("meal", "grind", 2)
    again = postmill(site, "grind", tmp_path / "words.txt", "-o", tmp_path / "meal", "--loud", "--threads-hint", "7")
    assert "up to date" in again.stderr
    other = postmill(site, "grind", tmp_path / "words.txt", "-o", tmp_path / "meal")
    assert other.returncode == 73
    assert "--loud" in postmill(site, "grind", "--help").stdout
    kind = "from postmill.io.kinds import find_kind; print(find_kind('meal').stream.names)"
    path = {"PYTHONPATH": str(site)}
    told = subprocess.run(
        [sys.executable, "-c", kind], env=os.environ | path, capture_output=True, text=True, check=True
    )
    assert told.stdout == "['grain']\n"


def test_a_schedule(site: Path, tmp_path: Path) -> None:
    told = postmill(site, "train", "--schedule", "halves", "--help", "all").stdout
    assert "--every x" in told
    rate = (
        "from postmill.stages.options import make, to_plain, from_plain\n"
        "from postmill.stages.train.config import Train\n"
        "cfg = make(Train, schedule='halves', every=0.25, lr=1.0, warmup=0)\n"
        "assert from_plain(Train, to_plain(cfg)) == cfg\n"
        "print([cfg.lr_at(n, 8) for n in range(8)])"
    )
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", rate], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    wrong = postmill(site, "train", "x", "-m", "y", "-o", "z", "--schedule", "halve")
    assert wrong.returncode == 2
    assert "did you mean halves?" in wrong.stderr


def test_an_objective_a_tuner_an_optimizer_and_a_schedule_train(site: Path, tmp_path: Path) -> None:
    """In one run; the objective's own number is what is recorded, and only what the tuner leaves has moved."""
    base = tiny_model.write_model(tmp_path / "base")
    packed = tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(12))
    words = ["--objective", "brier", "--brier.normalize", "rows", "--tuner", "norms", "--schedule", "halves"]
    words += ["--optimizer", "sums", "--shrink", "0.001", "--lr", "0.1", "--epochs", "2", "-o", tmp_path / "run"]
    done = postmill(site, "train", packed, "-m", base, *words)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines and all(line["missed"] > 0 for line in lines)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "run"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {n for n in before if "norm" in n}


def test_a_layout(site: Path, tmp_path: Path) -> None:
    """Two ranks whose gradients it sums learn what one process does, but for rounding."""
    base = tiny_model.write_model(tmp_path / "base")
    packed = tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(12))
    # AdamW divides a gradient by its own size, so rounding of what is nearly 0 would be as large as a step
    cfg = make(Train, tuner="full", lr=0.01, steps=3, bins_per_step=4, optimizer="sgd")
    run_stage(STAGE, cfg, {"packed": [str(packed)], "model": [str(base)]}, tmp_path / "alone", Options(threads=1))
    words = ["train", packed, "-m", base, "--tuner", "full", "--lr", "0.01", "--steps", "3", "--bins-per-step", "4"]
    words += ["--optimizer", "sgd", "--quiet", "-o"]
    layout = ["--layout", "summed", "--no-one-by-one"]
    done = postmill(site, "launch", "--ranks", "2", *words, tmp_path / "run", *layout)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("alone", "run"))
    before = load_file(base / "model.safetensors")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6)
    assert any(not torch.equal(two[name], before[name]) for name in before)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["parallel"]["layout"] == {"type": "summed", "one_by_one": False}
    mixed = postmill(site, *words, tmp_path / "no", *layout, "--tp", "2")
    assert (mixed.returncode, "leave them out" in mixed.stderr) == (2, True)


def test_an_engine_and_a_reward(site: Path, tmp_path: Path) -> None:
    base = write_chat_model(tmp_path / "base")
    (tmp_path / "asks.jsonl").write_text('{"messages": [{"role": "user", "content": "say"}]}\n')
    done = postmill(
        site, "tokenize", tmp_path / "asks.jsonl", "-m", base, "--for", "prompt", "-o", tmp_path / "prompts"
    )
    assert done.returncode == 0, done.stderr
    words = ["--engine", "echo", "--echo.token", "9", "--samples", "2", "--max-new-tokens", "5"]
    done = postmill(site, "rollout", tmp_path / "prompts", "-m", base, *words, "-o", tmp_path / "rollouts")
    assert done.returncode == 0, done.stderr
    done = postmill(site, "reward", tmp_path / "rollouts", "--func", "fives", "-o", tmp_path / "rewards")
    assert done.returncode == 0, done.stderr
    table = pa.Table.from_batches(list(TableReader(tmp_path / "rewards" / REWARDS, REWARDS_V1)))
    assert table["reward"].to_pylist() == [1.0, 1.0]
    wrong = postmill(site, "reward", tmp_path / "rollouts", "--func", "fours", "-o", tmp_path / "no")
    assert (wrong.returncode, "fives" in wrong.stderr) == (2, True)


def test_a_name_that_nobody_has(tmp_path: Path, site: Path) -> None:
    done = postmill(site, "grindd", "--help")
    assert done.returncode == 2
    assert "no such command" in done.stderr
