"""`postmill lossdiff`: every policy loss on the same stored samples, with its gradient at each token."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from postmill.cli.tool import open_artifact, parse
from postmill.io.errors import MISMATCH, ArtifactError, ConfigError
from postmill.io.manifest import Artifact
from postmill.io.packed import TokenRows, token_tables
from postmill.io.rewards import RewardsReader
from postmill.io.scores import ScoresReader

USAGE = """
Compute each policy loss on the same samples and rewards, as train does, and show them side by side.

usage: postmill lossdiff ROLLOUTS REWARDS [--new SCORES] [--old SCORES] [--losses NAME,NAME] [--rows N] [--json]

  postmill score rollouts/ -m base/ --adapter run/ -o now/
  postmill lossdiff rollouts/ rewards/ --new now/ --losses grpo,gspo,cispo

  --new SCORES   log-probs of the weights that would be trained, at the temperature of the sampling; without it those
                 of the engine: then every ratio is 1
  --old SCORES   log-probs that ratios compare with (default: those of the engine)
  --losses       which losses (default: all of grpo, dapo, dr_grpo, gspo, cispo, sapo, luspo, vespo, gmpo, dppo, fipo,
                 reinforce), with their published options
  --rows N       print the gradient at each token of the first N samples (default 1)

Columns: the loss; `gradient`, the mean over tokens of |d loss / d log-prob| times their number; `zero`, the share of
tokens without a gradient; `like first`, the cosine between its gradient and that of the first loss.
"""
_ROLES = ("--new", "--old")


class ObjectiveLoss(NamedTuple):
    """One loss on all samples."""

    name: str
    loss: float
    gradient_N: NDArray[np.float64]
    """d loss / d log-prob of each live sampled token, in the order of rows."""


class Tokens(NamedTuple):
    """The live sampled tokens, in the order of rows."""

    row: NDArray[np.int64]
    token: NDArray[np.int64]
    advantage: NDArray[np.float64]
    ratio: NDArray[np.float64]


def run(argv: list[str]) -> int:
    """Print two tables, or an object."""
    args = parse(argv, USAGE, switches=("--json",), valued=(*_ROLES, "--losses", "--rows"))
    if args is None:
        return 0
    if len(args.words) != 2:
        raise ConfigError("usage: postmill lossdiff ROLLOUTS REWARDS [--new SCORES] [--losses NAME,NAME] [--rows N]")
    rows = args.options.get("--rows", "1")
    if not rows.isdecimal():
        raise ConfigError(f"--rows {rows}: expected a number from 0 up")
    scores = {role: Path(args.options[role]) for role in _ROLES if args.has(role)}
    names = [name for name in args.options.get("--losses", "").split(",") if name]
    losses, tokens = compare(open_artifact(args.words[0]), Path(args.words[1]), scores, names)
    if args.has("--json"):
        report = {one.name: {"loss": one.loss, "gradient": one.gradient_N.tolist()} for one in losses}
        sys.stdout.write(msgspec.json.encode({"version": 1, "losses": report}).decode() + "\n")
    else:
        sys.stdout.write(summary(losses) + "\n" + by_token(losses, tokens, int(rows)))
    return 0


def compare(
    rollouts: Artifact, rewards: Path, scores: dict[str, Path], names: list[str]
) -> tuple[list[ObjectiveLoss], Tokens]:
    """The losses called `names`, or all. Raises ConfigError (2) for a name that is none, ArtifactError (78) for rewards
    or scores of other rollouts."""
    import torch

    from postmill.stages.shared.asked import Outputs
    from postmill.stages.shared.batch import collate
    from postmill.stages.train.objectives.rl import RlLoss, live_tokens
    from postmill.stages.train.objectives.rl_options import PRESETS, Rl

    longest = int(rollouts.manifest.config.get("max_new_tokens", 1))
    losses = PRESETS | {"dr_grpo": Rl(share="seq_mean_token_sum_norm", max_tokens=longest)}
    for name in names:
        if name not in losses:
            raise ConfigError(f"--losses {name}: no such loss; there are {', '.join(losses)}")
    reader = RewardsReader([rewards], [rollouts])
    tables = TokenRows(token_tables(rollouts))
    rows = np.arange(len(tables))
    packed = tables.lay(rows)
    lengths = np.diff(packed.cu_seqlens).astype(np.int64)
    engine_T = reader.logp(rows, lengths)
    old_T, new_T = (_scores(scores.get(role), rollouts, rows, lengths, engine_T) for role in ("--old", "--new"))
    columns: dict[str, NDArray[Any]] = {
        "advantage": reader.advantage,
        "group_tokens": reader.group_tokens(),
        "engine_logp": engine_T,
        "old_logp": old_T,
    }
    batch = collate([packed], columns)
    at_N = live_tokens(batch)
    tokens_R = torch.bincount(batch.row_T[at_N], minlength=len(rows))
    groups = batch.columns["group_tokens"]
    norms = {
        "sampled": float(len(at_N)),
        "live": float((tokens_R > 0).sum()),
        "live_groups": float((tokens_R[tokens_R > 0] / groups[tokens_R > 0]).double().sum()),
    }
    computed = []
    logp_T = torch.from_numpy(np.append(new_T[1:], 0.0).astype(np.float32))
    for name in names or losses:
        leaf_T = logp_T.clone().requires_grad_()
        loss, outputs = RlLoss(losses[name]), Outputs(logp_T=leaf_T)
        is_coupled = loss.needs.coupling == "step_constants"
        constants = loss.constants(loss.summary(outputs, batch).detach(), norms) if is_coupled else {}
        total = loss.loss(outputs, batch, norms, constants).total
        [gradient_T] = torch.autograd.grad(total, [leaf_T])
        computed.append(ObjectiveLoss(name, float(total.detach()), gradient_T[at_N].double().numpy()))
    row_N = batch.row_T[at_N]
    ratio_N = (logp_T[at_N] - batch.columns["old_logp"][at_N]).exp().double()
    tokens = Tokens(
        row_N.numpy(),
        batch.targets_T[at_N].numpy(),
        batch.columns["advantage"][row_N].double().numpy(),
        ratio_N.numpy(),
    )
    return computed, tokens


def _scores(
    path: Path | None,
    rollouts: Artifact,
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    otherwise: NDArray[np.float32],
) -> NDArray[np.float32]:
    if path is None:
        return otherwise
    reader = ScoresReader(path)
    made_of = [entry.digest for entry in reader.artifact.manifest.inputs if entry.port == "rows"]
    if made_of != [rollouts.digest]:
        raise ArtifactError(f"{path}: scores of other rows than {rollouts.path}; run `postmill score` on it", MISMATCH)
    return reader.tokens(rows, lengths, "logp")


def summary(losses: list[ObjectiveLoss]) -> str:
    """A line for each loss."""
    first = losses[0].gradient_N
    lines = [f"{'loss':<10}  {'value':>11}  {'gradient':>9}  {'zero':>6}  {'like first':>10}"]
    for one in losses:
        gradient = one.gradient_N
        size = float(np.linalg.norm(gradient) * np.linalg.norm(first))
        like = float(gradient @ first) / size if size else 0.0
        zero = float((gradient == 0).mean()) if len(gradient) else 0.0
        lines.append(f"{one.name:<10}  {one.loss:>11.6f}  {np.abs(gradient).sum():>9.4f}  {zero:>6.1%}  {like:>10.4f}")
    return "\n".join(lines) + "\n"


def by_token(losses: list[ObjectiveLoss], tokens: Tokens, num_rows: int) -> str:
    """A line for each token of the first samples: what each loss would do to it, in thousandths."""
    lines: list[Any] = []
    chosen = list(dict.fromkeys(tokens.row.tolist()))[:num_rows]
    for row in chosen:
        at = np.flatnonzero(tokens.row == row)
        lines.append(f"sample {row}, advantage {tokens.advantage[at[0]]:.4g}; 1000 * d loss / d log-prob")
        lines.append(f"{'token':>8}  {'ratio':>7}  " + "  ".join(f"{one.name:>9}" for one in losses))
        for t in at.tolist():
            values = "  ".join(f"{1000 * one.gradient_N[t]:>9.3f}" for one in losses)
            lines.append(f"{tokens.token[t]:>8}  {tokens.ratio[t]:>7.4f}  {values}")
    return "\n".join(lines) + ("\n" if lines else "")
