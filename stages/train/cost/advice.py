"""Changes that make a run fit, cheapest first; and the layouts of many GPUs, fastest first."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from postmill.stages.options import changed, tag
from postmill.stages.train.config import Train
from postmill.stages.train.cost.machines import Kind
from postmill.stages.train.cost.memory import Part, Setting, rank_parts, total
from postmill.stages.train.cost.shape import Shape
from postmill.stages.train.cost.speed import Plan, Speed, step_speed


class Change(NamedTuple):
    """Options, what they cost, and what a rank then needs."""

    flags: str
    cost: str
    needs: Part


class _Idea(NamedTuple):
    flags: str
    options: dict[str, Any]
    slower: float
    """How much longer a step takes, about."""
    other_result: int
    """0: rounding at most; 1: other updates; 2: something else is trained."""


def _ideas(cfg: Train, setting: Setting) -> Iterator[_Idea]:
    if cfg.batch.micro_bins > 1:
        yield _Idea("--micro-bins 1", {"micro_bins": 1}, 1.02, 0)
    if not cfg.compute.gradient_checkpointing:
        yield _Idea("--gradient-checkpointing", {"gradient_checkpointing": True}, 1.33, 0)
    if setting.ranks > 1 and cfg.parallel.shard == "none" and cfg.optimizer.shards:
        yield _Idea("--shard fsdp", {"shard": "fsdp"}, 1.1, 0)
    for ranks in (2, 4, 8):
        if setting.ranks % ranks == 0 and cfg.parallel.tp == 1 and cfg.optimizer.shards and setting.ranks >= ranks:
            yield _Idea(f"--tp {ranks}", {"tp": ranks}, 1.15 + 0.02 * ranks, 0)
    if tag(cfg.optimizer) == "adamw" and tag(cfg.tuner) == "full":
        yield _Idea("--optimizer lion", {"optimizer": "lion"}, 1.0, 1)
    if tag(cfg.tuner) == "full":
        yield _Idea("--tuner lora", {"tuner": "lora"}, 0.8, 2)


def changes_that_fit(cfg: Train, shape: Shape, setting: Setting, memory: float) -> list[Change]:
    """The three cheapest single changes or pairs after which even the high estimate is within `memory` bytes."""
    ideas = list(_ideas(cfg, setting))
    fitting: list[tuple[tuple[int, float], set[str], Change]] = []
    for size in (1, 2):
        for chosen in itertools.combinations(ideas, size):
            names = {idea.flags for idea in chosen}
            if any(known <= names for _, known, _ in fitting) or sum("--tp" in name for name in names) > 1:
                continue
            options = {name: value for idea in chosen for name, value in idea.options.items()}
            needs = total(rank_parts(changed(cfg, **options), shape, setting))
            if needs.high <= memory:
                slower, other = 1.0, max(idea.other_result for idea in chosen)
                for idea in chosen:
                    slower *= idea.slower
                flags = " ".join(idea.flags for idea in chosen)
                fitting.append(((other, slower), names, Change(flags, _cost(slower, other), needs)))
    fitting.sort(key=lambda one: one[0])
    return [change for _, _, change in fitting[:3]]


def _cost(slower: float, other: int) -> str:
    time = f"a step takes about {slower:.2f} times as long" if slower > 1 else "no slower"
    return f"{time}; {('the same result but for rounding', 'other updates', 'an adapter is trained')[other]}"


class Ranked(NamedTuple):
    """A layout of all GPUs."""

    flags: str
    speed: Speed
    needs: Part


def rank_layouts(cfg: Train, shape: Shape, kind: Kind, gpus: int, bin_tokens: int) -> list[Ranked]:
    """Layouts that `train` has and whose high estimate fits, fastest first."""
    ranked = []
    for tp, cp, shard, again in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), ("none", "fsdp", "hsdp"), (False, True)):
        if gpus % (tp * cp) or shape.heads % tp or shape.key_heads % tp or (shard == "hsdp" and gpus <= 8):
            continue
        data = gpus // (tp * cp)
        if cfg.batch.bins_per_step % data:
            continue
        options = {"tp": tp, "cp": cp, "shard": shard, "gradient_checkpointing": again}
        tried = changed(cfg, **options)
        needs = total(rank_parts(tried, shape, Setting(True, bin_tokens, 1.0, gpus, min(8, gpus))))
        if needs.high > kind.memory:
            continue
        flags = [f"--tp {tp}"] * (tp > 1) + [f"--cp {cp}"] * (cp > 1) + [f"--shard {shard}"] * (shard != "none")
        flags += ["--gradient-checkpointing"] * again
        plan = Plan(
            gpus,
            cfg.batch.bins_per_step * bin_tokens,
            bin_tokens,
            tp=tp,
            cp=cp,
            micro_rows=cfg.batch.micro_bins,
            checkpointing=again,
            sharded=shard != "none",
            state_sharded=shard != "none",
            weight_bytes=4 if tag(cfg.tuner) == "full" else 2,
        )
        ranked.append(Ranked(" ".join(flags) or "(none)", step_speed(shape, kind, plan), needs))
    return sorted(ranked, key=lambda one: one.speed.seconds)
