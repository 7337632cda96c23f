"""Changes that make a run fit, cheapest first; and the layouts of many GPUs, fastest first."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from postmill.stages.options import changed, tag
from postmill.stages.train.config import Train
from postmill.stages.train.cost.machines import Kind
from postmill.stages.train.cost.memory import Part, Setting, rank_parts, total
from postmill.stages.train.cost.shape import Shape
from postmill.stages.train.cost.speed import Plan, Speed, step_speed
from postmill.stages.train.parallel.options import IN_STAGES, Parallel


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
    found = []
    for form in _forms(shape, gpus):
        tp, cp, ep, pp, shard = form.tp, form.cp, form.ep, form.pp, form.shard
        if cfg.batch.bins_per_step % (gpus // (tp * cp * pp)):
            continue
        for again in (False, True):
            tried = changed(cfg, tp=tp, cp=cp, ep=ep, pp=pp, shard=shard, gradient_checkpointing=again)
            needs = total(rank_parts(tried, shape, Setting(True, bin_tokens, 1.0, gpus, min(8, gpus))))
            if needs.high > kind.memory:
                continue
            sizes = {"tp": tp, "cp": cp, "ep": ep, "pp": pp}
            flags = [f"--{name} {size}" for name, size in sizes.items() if size > 1]
            flags += [f"--shard {shard}"] * (shard != "none") + ["--gradient-checkpointing"] * again
            plan = Plan(
                gpus,
                cfg.batch.bins_per_step * bin_tokens,
                bin_tokens,
                tp=tp,
                cp=cp,
                ep=ep,
                pp=pp,
                micro_rows=cfg.batch.micro_bins,
                checkpointing=again,
                sharded=shard != "none",
                state_sharded=shard != "none",
                weight_bytes=4 if tag(cfg.tuner) == "full" else 2,
            )
            found.append(Ranked(" ".join(flags) or "(none)", step_speed(shape, kind, plan), needs))
    return sorted(found, key=lambda one: one.speed.seconds)


def _forms(shape: Shape, gpus: int) -> Iterator[Parallel]:
    """Forms that a model of this shape can have on so many GPUs."""
    sizes = (1, 2, 4, 8)
    shards: tuple[Literal["none", "fsdp", "hsdp"], ...] = ("none", "fsdp", "hsdp")
    for tp, cp, ep, pp, shard in itertools.product(sizes, sizes, sizes, sizes, shards):
        around = gpus // (tp * pp)
        cannot_divide = gpus % (tp * cp * pp) or shape.heads % tp or shape.key_heads % tp or around % ep
        is_refused = (ep > 1 and tp > 1) or (pp > 1 and (shard != "none" or ep > 1))
        has_no_use = (shard == "hsdp" and gpus <= 8) or (ep > 1 and (not shape.experts or shape.experts % ep))
        has_no_stages = pp > 1 and (shape.family not in IN_STAGES or shape.layers < pp)
        if not (cannot_divide or is_refused or has_no_use or has_no_stages):
            yield Parallel(tp=tp, cp=cp, ep=ep, pp=pp, shard=shard)
