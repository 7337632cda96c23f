"""The first step on samples of the very weights that are trained: their log-probs have to be the engine's."""

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.stages.protocol import Input
from postmill.stages.train.config import Train
from postmill.stages.train.objectives.rl_options import Rl
from postmill.stages.train.plan import Data, Step
from postmill.stages.train.step import Gradient

_LIMIT = 0.02
"""Nats a token. Two implementations of a model differ by 1e-6 in float32 and by 0.01 in bfloat16; another temperature,
another adapter or a mask that is off by one differs by 0.1 and more."""


def check_mismatch(cfg: Train, data: Data, model: Input, step: Step, gradient: Gradient) -> None:
    """Raise ArtifactError (78) in the first step if samples of this model have log-probs that it does not give."""
    objective = cfg.objective
    if step.number or not isinstance(objective, Rl):
        return
    mismatch = float(gradient.metrics["mismatch"])
    limit = objective.max_mismatch
    if limit is None:
        limit = _LIMIT if is_on_policy(data, model) else 0.0
    if limit and not mismatch <= limit:
        raise ArtifactError(
            f"{data.reader.tokens[0].path}: its log-probs differ from this model's by {mismatch:.3g} nats a token, more"
            f" than {limit:g}; sample with the weights that are trained, or raise --rl.max-mismatch",
            MISMATCH,
        )


def is_on_policy(data: Data, model: Input) -> bool:
    """Whether all rows were sampled by the very weights a run starts from."""
    sampled_by = [
        {entry.digest for entry in made.manifest.inputs if entry.port == "policy"} for made in data.reader.tokens
    ]
    return all(digests == {model.digest} for digests in sampled_by)
