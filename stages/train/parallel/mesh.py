"""The ranks of a run as a grid: who holds which part of the model, who computes which bins.

Rank numbers count tensor parallelism first, then context, then data, then stages of a pipeline: ranks that send each
other most are neighbours, on one machine. Two meshes cover the same ranks. `weights` says who holds what (copies,
shard, tensor), `tokens` who computes what (data, context, tensor).
"""

from typing import NamedTuple

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.train.parallel.options import Parallel


class Grid(NamedTuple):
    """How many ranks each form has; their product is the number of ranks."""

    data: int
    context: int
    tensor: int
    copies: int
    """Groups that hold the model once: all data and context ranks without sharding, one with fsdp."""
    expert: int = 1
    """Data and context ranks that the experts are dealt to."""

    pipe: int = 1
    """Stages that the layers are cut into."""

    @property
    def shards(self) -> int:
        """Ranks that one copy of the weights is dealt to, beside tensor parallelism."""
        return self.data * self.context // self.copies


def grid(form: Parallel, num_ranks: int, *, ranks_here: int) -> Grid:
    """Deal `num_ranks`, of which one machine has `ranks_here`. Raises ConfigError (2) if they do not divide."""
    of_one = form.tp * form.cp * form.pp
    if num_ranks % of_one:
        said = f"--tp {form.tp} --cp {form.cp}" + (f" --pp {form.pp}" if form.pp > 1 else "")
        raise ConfigError(
            f"{said}: {num_ranks} ranks are not a multiple of {of_one}; start as many with"
            f" postmill launch --ranks {of_one * max(1, num_ranks // of_one)}",
            USAGE,
        )
    data = num_ranks // of_one
    around = data * form.cp
    if form.ep > 1 and (form.tp > 1 or around % form.ep):
        why = "with --tp experts are cut as other matrices are" if form.tp > 1 else f"{around} ranks share the tokens"
        raise ConfigError(f"--ep {form.ep}: {why}; leave it out, or take ranks that it divides", USAGE)
    if form.pp > 1 and (form.shard != "none" or form.ep > 1):
        other = f"--shard {form.shard}" if form.shard != "none" else f"--ep {form.ep}"
        raise ConfigError(f"--pp {form.pp} {other}: stages hold their layers whole; leave one of the two out", USAGE)
    if form.shard == "none":
        return Grid(data, form.cp, form.tp, around, form.ep, form.pp)
    if form.shard == "fsdp":
        return Grid(data, form.cp, form.tp, 1, form.ep)
    share = form.shard_ranks or max(1, ranks_here // form.tp)
    if around % share:
        raise ConfigError(
            f"--shard hsdp: {around} ranks hold the model's weights, which groups of {share} do not divide; set"
            " --shard-ranks",
            USAGE,
        )
    return Grid(data, form.cp, form.tp, around // share, form.ep)


class Meshes(NamedTuple):
    """The grid as torch's meshes."""

    grid: Grid
    weights: DeviceMesh
    tokens: DeviceMesh
    experts: DeviceMesh | None
    """(replicas, expert), where experts are dealt."""
    pipes: list[list[int]]
    """Ranks of each pipeline, in the order of stages."""


def make(found: Grid, device_type: str) -> Meshes:
    """Every rank calls it: process groups are made."""
    outer, name = ((found.pipe,), ("pipe",)) if found.pipe > 1 else ((), ())
    weights = init_device_mesh(
        device_type,
        (*outer, found.copies, found.shards, found.tensor),
        mesh_dim_names=(*name, "copies", "shard", "tensor"),
    )
    tokens = init_device_mesh(
        device_type,
        (*outer, found.data, found.context, found.tensor),
        mesh_dim_names=(*name, "data", "context", "tensor"),
    )
    inner = found.data * found.context * found.tensor
    pipes = [list(range(first, inner * found.pipe, inner)) for first in range(inner)]
    experts = None
    if found.expert > 1:
        around = found.data * found.context
        names = ("replicas", "expert")
        experts = init_device_mesh(device_type, (around // found.expert, found.expert), mesh_dim_names=names)
    return Meshes(found, weights, tokens, experts, pipes)


def one_each(pipes: list[list[int]]) -> dist.ProcessGroup:
    """A new group of the ranks of each pipeline; every rank calls it, and has its own."""
    groups = [dist.new_group(ranks) for ranks in pipes]
    here = dist.get_rank()
    mine: dist.ProcessGroup = next(g for ranks, g in zip(pipes, groups, strict=True) if here in ranks)
    return mine


def ends_of(pipes: list[list[int]]) -> dist.ProcessGroup | None:
    """A group of the first and the last rank of each pipeline; None for ranks between them."""
    groups = [dist.new_group([ranks[0], ranks[-1]]) for ranks in pipes]
    here = dist.get_rank()
    return next((group for ranks, group in zip(pipes, groups, strict=True) if here in (ranks[0], ranks[-1])), None)
