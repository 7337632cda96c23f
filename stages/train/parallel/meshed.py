"""A model cut over a mesh: by tensor, context and data, in shards or copies, in any mixture.

A rank's loss is the whole loss of its bins, and its gradient a share of it; so gradients are sums over the ranks that
computed other tokens, and norms are sums over the ranks that hold other weights. Nothing is averaged.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.context import Context
from postmill.stages.shared.forward import Forward
from postmill.stages.train.parallel import expert, fsdp, mesh, pipeline, tensor
from postmill.stages.train.parallel.layout import T, one_by_one
from postmill.stages.train.parallel.options import Parallel
from postmill.stages.train.parallel.parts import cut_by, cut_like, lay_alike, move, of_rank
from postmill.stages.train.parallel.sums import sum_gradients


class Meshed:
    """Forms are applied from the inside out: tensor, then context, then shards."""

    def __init__(self, accelerator: Accelerator, form: Parallel) -> None:
        """Raises ConfigError (2) if the ranks cannot be dealt so."""
        ranks = accelerator.num_processes
        found = mesh.grid(form, ranks, ranks_here=int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
        self._meshes = mesh.make(found, accelerator.device.type)
        pipes = self._meshes.pipes
        self._in_shards = form.shard != "none"
        self._accelerator = accelerator
        self._trained: list[nn.Parameter] = []
        self._summed: list[nn.Parameter] = []
        self._dealt: list[nn.Parameter] = []
        self._stage: pipeline.Stage | None = None
        self._saved_by: dict[int, int] = {}
        self._twice: nn.Parameter | None = None
        self._ends: dist.ProcessGroup | None = None
        if found.pipe > 1:
            ahead, back = mesh.one_each(pipes), mesh.one_each(pipes)
            self._ends = mesh.ends_of(pipes)
            self._stage = pipeline.Stage(ahead, back, accelerator.device)
        self.has_outputs = self._stage is None or self._stage.is_last
        self.device = accelerator.device
        self.num_data, self.data_rank = found.data, self._meshes.tokens.get_local_rank("data")
        sizes = {"tp": found.tensor, "cp": found.context, "ep": found.expert, "pp": found.pipe}
        shard = form.shard if form.shard != "hsdp" else f"hsdp {found.shards}"
        self.name = ", ".join([shard, *(f"{word} {size}" for word, size in sizes.items() if size > 1)])

    def wrap(self, forward: Forward) -> nn.Module:
        """`forward`, its parameters replaced by this rank's parts."""
        weights, tokens = self._meshes.weights, self._meshes.tokens
        summed: set[int] = set()
        if self._meshes.grid.tensor > 1:
            summed = {id(p) for p in tensor.split(forward.model, weights["tensor"])}
        names = {name for name, parameter in forward.named_parameters() if id(parameter) in summed}
        if self._meshes.experts is not None:
            self._dealt = expert.split(forward.model, self._meshes.experts["expert"], weights["tensor"])
        if self._meshes.grid.context > 1:
            forward.share_tokens(Context(tokens.get_group("context")))
        if self._in_shards:
            around = weights["shard"] if self._meshes.grid.copies == 1 else weights["copies", "shard"]
            fsdp.shard(forward, around, set(self._dealt))
        if self._stage is not None:
            self._saved_by = pipeline.cut(forward, self._stage)
            if not any(p.requires_grad and not p.is_meta for p in forward.parameters()):
                raise ConfigError(f"--pp {self._stage.count}: nothing is trained in stage {self._stage.index}", USAGE)
            self._twice = self._shared_weight(forward)
        move(forward, self.device)
        # by name, for sharding makes other parameters of them
        trained = {name: p for name, p in forward.named_parameters() if p.requires_grad and not p.is_meta}
        dealt = {id(parameter) for parameter in self._dealt}
        self._dealt = [parameter for parameter in trained.values() if id(parameter) in dealt]
        self._trained = [parameter for parameter in trained.values() if id(parameter) not in dealt]
        self._summed = [trained[name] for name in trained if name in names]
        return forward

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Tensors of one mesh and kind in each group: torch updates a group in one call."""
        parted = []
        for group in optimizer.param_groups:
            kinds: dict[Any, list[Tensor]] = {}
            for parameter in group["params"]:
                kind = parameter.device_mesh if isinstance(parameter, DTensor) else None
                kinds.setdefault(kind, []).append(parameter)
            parted += [group | {"params": members} for members in kinds.values()]
        optimizer.param_groups[:] = parted

    @contextlib.contextmanager
    def gathering(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Gradients stay where they were made until the last micro-batch."""
        if self._in_shards:
            module.set_requires_gradient_sync(last)  # type: ignore[operator]  # a method that fully_shard added
        yield
        if not last:
            return
        grid = self._meshes.grid
        if grid.tensor > 1:
            sum_gradients(self._summed, self._meshes.weights.get_group("tensor"))
        if not self._in_shards and grid.copies > 1:
            sum_gradients(self._trained, self._meshes.weights.get_group("copies"))
        if self._twice is not None and self._ends is not None:
            lay_alike(self._twice)
            sum_gradients([self._twice], self._ends)
        if self._dealt and self._meshes.experts is not None:
            sum_gradients(self._dealt, self._meshes.experts.get_group("replicas"))
            for parameter in self._dealt if self._in_shards else ():  # they are not averaged as the others are
                assert parameter.grad is not None
                of_rank(parameter.grad).div_(grid.data * grid.context)

    def order(self, num_blocks: int) -> Iterable[tuple[int, bool]]:
        """A pipeline has an order of its own."""
        return one_by_one(num_blocks) if self._stage is None else self._stage.order(num_blocks)

    def agreed(self, make: Callable[[], T]) -> T:
        """The last stage tells the others."""
        if self._stage is None:
            return make()
        self._stage.settle()
        found: list[Any] = [tree_map(_to_cpu, make()) if self.has_outputs else None]
        dist.broadcast_object_list(found, group=self._stage.ahead, group_src=self._stage.count - 1, device=self.device)
        told: T = tree_map(lambda value: value.to(self.device) if isinstance(value, Tensor) else value, found[0])
        return told

    def backward(self, loss: Tensor | None) -> None:
        """FSDP averages what we want to be a sum."""
        if self._stage is not None:
            self._stage.backward(loss)
            return
        assert loss is not None
        grid = self._meshes.grid
        around = grid.data * grid.context
        (loss * around if self._in_shards and around > 1 else loss).backward()  # type: ignore[no-untyped-call]

    def clip(self, parameters: Iterable[Tensor], norm: float) -> Tensor:
        """The norm is summed over the ranks that hold other parts; what several hold alike counts once."""
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        once = [p.grad for p in parameters if p is not self._twice or self._stage is None or self._stage.is_first]
        squares: dict[tuple[Any, ...], Tensor] = {}
        for gradient in once:
            assert gradient is not None
            groups = tuple(cut_by(gradient))
            before = squares.get(groups, torch.zeros((), dtype=torch.float64, device=self.device))
            squares[groups] = before + of_rank(gradient).double().square().sum()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for groups, square in squares.items():
            for group in groups:
                dist.all_reduce(square, group=group)
            total += square
        if self._stage is not None:
            dist.all_reduce(total, group=self._stage.ahead)
        found = total.sqrt().float()
        factor = (norm / (found + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            of_rank(gradient).mul_(factor)
        return found

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Every rank updates the parts it has."""
        optimizer.step()

    def sum(self, tensor: Tensor) -> Tensor:
        """Ranks of one data rank hold the same number, which counts once."""
        total = tensor.to(self.device, copy=True)
        if self.num_data > 1:
            dist.all_reduce(total, group=self._meshes.tokens.get_group("data"))
        return total

    def gather(self, rows: Tensor, *, pad: int = 0) -> Tensor:
        """In the order of data ranks."""
        if self.num_data == 1:
            return rows
        group = self._meshes.tokens.get_group("data")
        longest = torch.tensor(len(rows), device=self.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX, group=group)
        padded = rows.new_full((int(longest), *rows.shape[1:]), pad)
        padded[: len(rows)] = rows
        pieces = [torch.empty_like(padded) for _ in range(self.num_data)]
        dist.all_gather(pieces, padded, group=group)
        return torch.cat(pieces)

    def whole(self, tensor: Tensor) -> Tensor:
        """Gathered from all ranks; of a pipeline, the first stage has it then."""
        stage, by = self._stage, self._saved_by.get(id(tensor), 0)
        if stage is None or by == 0:
            return self._gathered(tensor)
        if stage.index == by:
            mine = self._gathered(tensor).contiguous()
            dist.send(mine, group=stage.ahead, group_dst=0)
            return mine
        if stage.is_first:
            theirs = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            dist.recv(theirs, group=stage.ahead, group_src=by)
            return theirs
        return tensor.detach()

    def whole_state(self, parameter: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stage that saves the parameter sends its state to the first."""
        stage, by = self._stage, self._saved_by.get(id(parameter), 0)
        mine = {key: self._gathered(value) for key, value in state.items()}
        if stage is None or by == 0:
            return mine if stage is None or stage.is_first else {}
        found: list[Any] = [tree_map(_to_cpu, mine)]
        if stage.index == by:
            dist.send_object_list(found, group=stage.ahead, group_dst=0, device=self.device)
        elif stage.is_first:
            dist.recv_object_list(found, group=stage.ahead, group_src=by, device=self.device)
            return dict(found[0])
        return {}

    def _shared_weight(self, forward: Forward) -> nn.Parameter | None:
        """The weight that is embedding in the first stage and head in the last, if it is trained."""
        model = forward.model
        weight: nn.Parameter = model.get_input_embeddings().weight
        is_shared = weight is model.get_output_embeddings().weight and weight.requires_grad
        return weight if is_shared and not weight.is_meta else None

    def _gathered(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor.detach()
        gathered: Tensor = tensor.full_tensor()
        return gathered.detach()

    def restore(self, optimizer: torch.optim.Optimizer, parameter: Tensor, state: Mapping[str, Tensor]) -> None:
        """Each rank takes its parts."""
        optimizer.state[parameter] = {key: self.part(tensor, parameter) for key, tensor in state.items()}

    def part(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """The part that goes with the parameter's; a scalar (the step count) is whole on every rank."""
        if parameter.is_meta:  # another stage's
            return tensor.to("meta")
        if tensor.ndim == 0 or not isinstance(parameter, DTensor):
            return tensor.to(self.device)
        return cut_like(tensor, parameter, self.device)

    def close(self) -> None:
        """No C++ object holds the group."""
        self._accelerator.end_training()


def _to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
