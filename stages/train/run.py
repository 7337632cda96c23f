"""Train: check that data and model fit, then load, take steps, save. What can be refused is, before torch loads."""

import faulthandler
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.io.packed import PackedReader
from postmill.io.rewards import RewardsReader
from postmill.io.scores import ScoresReader
from postmill.stages.protocol import Input, Inputs, Out, Result
from postmill.stages.shared.answer_tokens import answer_ids
from postmill.stages.train.answers import check_one_answer
from postmill.stages.train.checks import (
    check_data,
    check_demonstrations,
    check_objective,
    check_quantized,
    check_request,
    check_watched,
)
from postmill.stages.train.config import Train
from postmill.stages.train.left_out import say_left_out
from postmill.stages.train.objectives.options import Sft
from postmill.stages.train.objectives.own_options import Own
from postmill.stages.train.origin import check_start
from postmill.stages.train.plan import Data, Steps


def run(cfg: Train, inputs: Inputs, out: Out) -> Result:
    """Make an adapter or a model. Raises ConfigError (2), ArtifactError (65, 66, 78), StageError (1, 75, 79)."""
    if "POSTMILL_BEAT" in os.environ:  # the launcher asks where a rank is before it ends a job that hangs
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    # a signal while the model loads is heard before the first step
    out.stop.graceful = True
    check_request(cfg)
    if isinstance(cfg.objective, Own) != bool(inputs["own_loss"]):
        raise ConfigError("--objective own and its function go together; write --objective file.py:function", USAGE)
    model = inputs["model"][0]
    check_quantized(cfg, model)
    answers = cfg.objective.needs.head.answers
    if answers is not None and model.path is not None:
        answer_ids(model.path, answers)
    start = inputs["from"][0] if inputs["from"] else None
    if start is not None:
        check_start(cfg, start, model)
    rewards = [item.path for item in inputs["rewards"] if item.path is not None]
    data = _open(cfg, inputs["packed"][0], model, _scores(inputs, ""), rewards)
    Steps(cfg, data.reader, num_ranks=1, rewards=data.rewards).check()
    if inputs["valid"] and cfg.objective.needs.sampled:
        raise ConfigError("--valid: samples have no validation loss; sample and reward with the trained model", USAGE)
    valid = _open(cfg, inputs["valid"][0], model, _scores(inputs, "valid.")) if inputs["valid"] else None
    shown = _demonstrations(cfg, inputs["demonstrations"][0], model) if inputs["demonstrations"] else None

    prompts = inputs["sample_prompts"][0] if inputs["sample_prompts"] else None
    check_watched(cfg, prompts, has_valid=valid is not None)

    if model.path is not None and out.rank == 0:
        say_left_out(model.path, cfg.tuner.makes)

    from postmill.stages.train.loop import train

    return train(
        cfg,
        data,
        valid,
        model,
        out,
        start=start,
        own_loss=inputs["own_loss"],
        prompts=prompts,
        stored=inputs["pixels"],
        demonstrations=shown,
    )


def _demonstrations(cfg: Train, packed: Input, model: Input) -> Data:
    """Raises ConfigError (2) where their loss cannot stand beside the objective's."""
    check_demonstrations(cfg)
    assert packed.path is not None
    data = Data(PackedReader(packed.path))
    check_data(packed, data.reader, model, Sft().needs)
    return data


def _open(
    cfg: Train, packed: Input, model: Input, scores: dict[str, ScoresReader], rewards: Sequence[Path] = ()
) -> Data:
    assert packed.path is not None
    if rewards and not cfg.objective.needs.sampled:
        raise ConfigError("--rewards: only --objective rl learns from rewards; leave it out", USAGE)
    reader = PackedReader(packed.path)
    data = Data(reader, scores, RewardsReader(rewards, reader.tokens) if rewards else None)
    check_data(packed, data.reader, model, cfg.objective.needs)
    check_objective(str(packed.path), data, cfg.objective.needs)
    if model.path is not None and load_json(model.path / "config.json").get("is_encoder_decoder"):
        check_one_answer(str(packed.path), data.reader)
    return data


def _scores(inputs: Inputs, prefix: str) -> dict[str, ScoresReader]:
    """Scores given as `PREFIX` + role, by role."""
    scores = {}
    for item in inputs["scores"]:
        role = item.port.removeprefix("scores.")
        if role.startswith("valid.") == bool(prefix) and item.path is not None:
            scores[role.removeprefix(prefix)] = ScoresReader(item.path)
    return scores
