"""Advantages by token: from a critic's values (GAE), from a teacher's log-probs, with a divergence in the reward.

A sample's tokens are those it sampled, one turn after the other; what it was told lies between them and counts nothing.
Letters: S samples, T sampled tokens of the longest. Sources: GAE, <https://arxiv.org/abs/1506.02438>; PPO of language
models, <https://arxiv.org/abs/1909.08593>; on-policy distillation,
<https://thinkingmachines.ai/blog/on-policy-distillation>.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.manifest import Artifact
from postmill.io.scores import ScoresReader
from postmill.stages.protocol import Inputs
from postmill.stages.reward.by_token_options import ByToken

Values = NDArray[np.float64]
_EPS = 1e-8


class TokenSample(NamedTuple):
    """A sample's tokens: where they are, and what is known of each."""

    rows: tuple[int, ...]
    """Its branches."""
    counts: tuple[int, ...]
    """Sampled tokens of each."""
    signals: dict[str, Values]
    """By name (sampler, value, ref, teacher): [T]."""
    steps: list[tuple[int, float]]
    """Rewards of the environment, by the token they follow."""


class Credit(NamedTuple):
    """What a row's tokens get, in the order of its `sampled`; None where nothing is known by token."""

    advantages: Values | None = None
    returns: Values | None = None
    values: Values | None = None


def gae(rewards_ST: Values, values_ST: Values, lengths_S: NDArray[np.int64], *, gamma: float, lam: float) -> Values:
    """Generalised advantages; 0 beyond each length. A sample ends with a value of 0."""
    found = np.zeros_like(rewards_ST)
    last_S = np.zeros(len(rewards_ST))
    for t in range(rewards_ST.shape[1] - 1, -1, -1):
        following_S = np.where(t + 1 < lengths_S, values_ST[:, min(t + 1, values_ST.shape[1] - 1)], 0.0)
        delta_S = rewards_ST[:, t] + gamma * following_S - values_ST[:, t]
        last_S = np.where(t < lengths_S, delta_S + gamma * lam * last_S, 0.0)
        found[:, t] = last_S
    return found


def whitened(values: Values, among: Values) -> Values:
    """Mean 0 and sample deviation 1 over `among`."""
    if len(among) < 2:
        return values - among.mean() if len(among) else values
    found: Values = (values - among.mean()) / np.sqrt(among.var(ddof=1) + _EPS)
    return found


def divergence(kind: str, logp: Values, ref: Values) -> Values:
    """An estimate of KL(policy, reference) at each token that the policy sampled."""
    ratio = ref - logp
    return -ratio if kind == "k1" else np.expm1(ratio) - ratio


def read_samples(
    inputs: Inputs, artifacts: Sequence[Artifact], every: Sequence[Mapping[str, Any]], logps: Sequence[Any]
) -> list[TokenSample]:
    """The samples of all rows with what --values, --ref and --teacher say of their tokens.

    logps: of the sampler, by row. Raises ArtifactError (78) for scores of other rows or another temperature.
    """
    readers = {name: _open(inputs, port, artifacts, every) for name, port in _PORTS.items() if inputs[port]}
    rows = np.arange(len(every))
    lengths = np.array([row["length"] for row in every], np.int64)
    borders = np.cumsum([0, *lengths])
    tokens = {
        name: reader.tokens(rows, lengths, "values" if name == "value" else "logp") for name, reader in readers.items()
    }
    samples: list[TokenSample] = []
    for number, row in enumerate(every):
        places = [np.arange(span["start"], span["end"]) for span in row["sampled"]]
        at = np.concatenate([np.empty(0, np.int64), *places])
        signals = {name: found[borders[number] + at].astype(np.float64) for name, found in tokens.items()}
        signals["sampler"] = np.array(logps[number] if logps[number] is not None else [np.nan] * len(at), np.float64)
        for name, found in signals.items():
            if np.isnan(found).any() and not (name == "sampler" and not readers):
                raise ArtifactError(
                    f"row {number:,}: {name} says nothing of some sampled tokens; score again", MISMATCH
                )
        steps = [(int((at < step["at"]).sum()) - 1, step["value"]) for step in row["step_rewards"] or []]
        samples.append(TokenSample((number,), (len(at),), signals, steps))
        if row["branch"]:
            samples[-2:] = [_joined(samples[-2], samples[-1])]
    return samples


_PORTS = {"value": "values", "ref": "ref", "teacher": "teacher"}


def _joined(first: TokenSample, second: TokenSample) -> TokenSample:
    before = sum(first.counts)
    return TokenSample(
        first.rows + second.rows,
        first.counts + second.counts,
        {name: np.concatenate([found, second.signals[name]]) for name, found in first.signals.items()},
        first.steps + [(at + before, value) for at, value in second.steps],
    )


def _open(inputs: Inputs, port: str, artifacts: Sequence[Artifact], every: Sequence[Mapping[str, Any]]) -> ScoresReader:
    path = inputs[port][0].path
    assert isinstance(path, Path)
    reader = ScoresReader(path)
    if reader.row_ids() != [row["row_id"] for row in every]:
        raise ArtifactError(f"--{port} {path}: of other rollouts than these; score these, all in one", MISMATCH)
    sampled_at = {float(made.manifest.metrics.get("temperature", 1.0)) for made in artifacts}
    found = float(reader.artifact.manifest.config.get("temperature", 1.0))
    if port != "values" and sampled_at != {found}:
        said = ", ".join(f"{temperature:g}" for temperature in sorted(sampled_at))
        raise ArtifactError(
            f"--{port} {path}: log-probs at temperature {found:g}, the samples are of {said}; score with --temperature"
            f" {said}",
            MISMATCH,
        )
    return reader


def check_ports(advantage: str, cfg: ByToken, inputs: Inputs) -> None:
    """Raise ConfigError (2) for inputs and options that do not go together."""
    if inputs["values"] and advantage != "gae":
        raise ConfigError("--values: only --advantage gae reads a critic's values", USAGE)
    if advantage == "opd" and not inputs["teacher"]:
        raise ConfigError(
            "--advantage opd needs --teacher: what a teacher says of these rollouts (postmill score)", USAGE
        )
    if bool(cfg.kl_coef) != bool(inputs["ref"]):
        raise ConfigError("--kl-coef and --ref go together: how much, and the scores of the reference model", USAGE)


def divergences(cfg: ByToken, samples: Sequence[TokenSample]) -> Values:
    """What is taken from each sample's reward: [S]."""
    if not cfg.kl_coef:
        return np.zeros(len(samples))
    return np.array([cfg.kl_coef * divergence(cfg.kl, s.signals["sampler"], s.signals["ref"]).sum() for s in samples])


def credit_gae(
    cfg: ByToken, samples: Sequence[TokenSample], reward: Values, env_weight: float, alive: NDArray[np.bool_]
) -> list[Credit]:
    """GAE of each sample.

    reward: [S], without divergence, NaN where there is none; alive: [S], the samples whose tokens are whitened over;
    env_weight: of the environment's rewards in `reward`; they count where they were given, the rest at the end.
    """
    lengths_S = np.array([sum(sample.counts) for sample in samples], np.int64)
    most = int(lengths_S.max(initial=1))
    rewards_ST, values_ST = np.zeros((len(samples), most)), np.zeros((len(samples), most))
    for s, sample in enumerate(samples):
        count = int(lengths_S[s])
        if not count:
            continue
        if cfg.kl_coef:
            rewards_ST[s, :count] -= cfg.kl_coef * divergence(cfg.kl, sample.signals["sampler"], sample.signals["ref"])
        rewards_ST[s, count - 1] += np.nan_to_num(reward[s])
        for at, value in sample.steps if env_weight else []:
            rewards_ST[s, at] += env_weight * value
            rewards_ST[s, count - 1] -= env_weight * value
        if "value" in sample.signals:
            values_ST[s, :count] = sample.signals["value"]
    advantages_ST = gae(rewards_ST, values_ST, lengths_S, gamma=cfg.gamma, lam=cfg.lam)
    returns_ST = advantages_ST + values_ST
    if cfg.whiten:
        among = [advantages_ST[s, : lengths_S[s]] for s in range(len(samples)) if alive[s]]
        advantages_ST = whitened(advantages_ST, np.concatenate([np.empty(0), *among]))
    return [
        Credit(advantages_ST[s, :count], returns_ST[s, :count], values_ST[s, :count])
        for s, count in enumerate(lengths_S.tolist())
    ]


def add_teacher(cfg: ByToken, samples: Sequence[TokenSample], advantage: Values, credits: list[Credit]) -> list[Credit]:
    """Each token's advantage, or that of its sample, plus the teacher's log-ratio. advantage: [S]."""
    found = []
    for sample, of_sample, credit in zip(samples, advantage, credits, strict=True):
        if "teacher" not in sample.signals:
            found.append(credit)
            continue
        gain = cfg.teacher_coef * (sample.signals["teacher"] - sample.signals["sampler"])
        before = credit.advantages if credit.advantages is not None else np.full(len(gain), np.nan_to_num(of_sample))
        found.append(credit._replace(advantages=before + gain))
    return found


def by_row(samples: Sequence[TokenSample], credits: Sequence[Credit]) -> dict[int, Credit]:
    """Each row's part of its sample's credit."""
    found = {}
    for sample, credit in zip(samples, credits, strict=True):
        at = 0
        for row, count in zip(sample.rows, sample.counts, strict=True):
            found[row] = Credit(*(None if part is None else part[at : at + count] for part in credit))
            at += count
    return found
