"""DeepSpeed's ZeRO: what ranks would hold alike is dealt to them, and may lie in main memory or in files.

Stage 1 deals the optimizer's state, stage 2 gradients as well, stage 3 weights too. Every rank computes bins of its own
with the whole model, of which stage 3 gathers a layer while it computes. Trained weights are float32, as in all
layouts, and so are sums of gradients. Source: ZeRO, <https://arxiv.org/abs/1910.02054>, ZeRO-Infinity,
<https://arxiv.org/abs/2104.07857>.

torch's FSDP2 (`--shard fsdp`) does what stage 3 does and needs no package. ZeRO has offload, and stages 1 and 2.
DeepSpeed's own checkpoints are pickles; nothing here writes one.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.forward import Forward
from postmill.stages.train.parallel.layout import T, one_by_one
from postmill.stages.train.parallel.options import Parallel


def engine_config(form: Parallel) -> dict[str, Any]:
    """What DeepSpeed reads. Batches, clipping and rates are ours: the plan knows every normaliser."""
    stage = int(form.shard[-1])
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": False}
    if form.offload != "none":
        place: dict[str, Any] = {"device": form.offload, "pin_memory": torch.cuda.is_available()}
        if form.offload == "nvme":
            place["nvme_path"] = form.offload_to
        zero["offload_optimizer"] = place
        if stage == 3:
            zero["offload_param"] = place
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


class Zero:
    """Bins are computed one by one; gradients meet in each, or in the last one (stage 1)."""

    has_outputs = True

    def __init__(self, accelerator: Accelerator, form: Parallel) -> None:
        """Raises ConfigError (2) if DeepSpeed is not installed."""
        if find_spec("deepspeed") is None:
            raise ConfigError(
                f"--shard {form.shard}: DeepSpeed is not installed; pip install 'postmill[deepspeed]', or use --shard"
                " fsdp, which needs no package",
                USAGE,
            )
        self._accelerator, self._form = accelerator, form
        self._config = engine_config(form)
        self._called: _Called | None = None
        self._engine: Any = None
        self.device = accelerator.device
        self.num_data, self.data_rank = accelerator.num_processes, accelerator.process_index
        self.name = form.shard if form.offload == "none" else f"{form.shard}, offload {form.offload}"

    def wrap(self, forward: Forward) -> nn.Module:
        """A module that calls DeepSpeed's engine, which `prepare` makes: it wants the optimizer."""
        self._called = _Called(forward)
        return self._called

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Deal weights and state. From now on the optimizer has this rank's parts as its parameters."""
        assert self._called is not None
        # it prints to stdout, which is data
        with contextlib.redirect_stdout(sys.stderr):
            import deepspeed

            deepspeed.utils.logger.setLevel("WARNING")
            self._engine, *_ = deepspeed.initialize(
                model=self._called.forward_of_one, optimizer=optimizer, config=self._config
            )
        self._called.engine = self._engine

    @contextlib.contextmanager
    def gathering(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """DeepSpeed is told which micro-batch is the last."""
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def order(self, num_blocks: int) -> Iterable[tuple[int, bool]]:
        """One by one."""
        return one_by_one(num_blocks)

    def agreed(self, make: Callable[[], T]) -> T:
        """Every rank has outputs."""
        return make()

    def backward(self, loss: Tensor | None) -> None:
        """DeepSpeed averages what we want to be a sum."""
        assert loss is not None
        self._engine.backward(loss * self.num_data, scale_wrt_gas=False)

    def clip(self, parameters: Iterable[Tensor], norm: float) -> Tensor:
        """The norm as DeepSpeed will find it; `step` then clips."""
        optimizer = self._engine.optimizer
        optimizer.clip_grad = 0.0 if math.isinf(norm) else norm
        if self._form.shard == "zero3":
            groups = [torch.as_tensor(group, device=self.device) for group in optimizer._get_norm_groups()]
            found = torch.stack(groups).double().square().sum().sqrt()
        else:
            found = torch.as_tensor(optimizer.scaled_global_norm(), device=self.device)
        # DeepSpeed's sign of a norm that is no number
        return torch.where(found < 0, math.nan, found).float()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Each rank updates its part; weights meet."""
        self._engine.step()

    def sum(self, tensor: Tensor) -> Tensor:
        """Of all ranks."""
        total: Tensor = self._accelerator.reduce(tensor.to(self.device), "sum")
        return total

    def gather(self, rows: Tensor, *, pad: int = 0) -> Tensor:
        """Of all ranks."""
        gathered: Tensor = self._accelerator.gather(self._accelerator.pad_across_processes(rows, pad_index=pad))
        return gathered

    def whole(self, tensor: Tensor) -> Tensor:
        """Gathered, where stage 3 has dealt it."""
        if not hasattr(tensor, "ds_id"):
            return tensor.detach()
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()

    def whole_state(self, parameter: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From the engine: `state` is empty, for the optimizer knows parts of many parameters joined."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        state = self._engine.optimizer.optimizer.state[self._joined()[0]]  # all have the same keys
        return {
            key: safe_get_full_optimizer_state(parameter, key) if value.ndim else value.clone()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def restore(self, optimizer: torch.optim.Optimizer, parameter: Tensor, state: Mapping[str, Tensor]) -> None:
        """The parts of this rank; numbers that all parameters share (the step) are those of the last one."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for joined in self._joined():
            found = optimizer.state[joined]
            for key, value in state.items():
                if value.ndim == 0:
                    found[key] = value.to(joined.device, copy=True)
                elif key not in found:
                    found[key] = torch.zeros_like(joined)
        self._link()
        for key, value in state.items():
            if value.ndim:
                safe_set_full_optimizer_state(parameter, value.to(self.device), key)

    def _joined(self) -> list[Tensor]:
        """What the optimizer updates: parts of many parameters end to end."""
        optimizer = self._engine.optimizer
        is_third = self._form.shard == "zero3"
        found: list[Tensor] = (
            optimizer.fp32_partitioned_groups_flat if is_third else optimizer.single_partition_of_fp32_groups
        )
        return found

    def _link(self) -> None:
        """Let parameters find their pieces of the state. DeepSpeed does so after the first step of its first group,
        when the others have no state yet."""
        if self._form.shard == "zero3":
            return
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        optimizer = self._engine.optimizer
        for members, joined in zip(optimizer.bit16_groups, self._joined(), strict=True):
            lazy_init_hp_params_optimizer_state(members, joined, optimizer.optimizer.state)

    def part(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Not used: `restore` puts parts where they belong."""
        return tensor.to(self.device)

    def close(self) -> None:
        """Leave the ranks' group."""
        if self._engine is not None:
            self._engine.destroy()
        self._engine = self._called = None
        self._accelerator.end_training()


class _Called(nn.Module):
    """`forward` through the engine, as soon as there is one."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.forward_of_one = forward
        self.engine: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "engine":  # the engine is a module that holds ours: not a part of it
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def train(self, mode: bool = True) -> "_Called":
        """Both."""
        super().train(mode)
        if self.engine is not None:
            self.engine.train(mode)
        return self

    def forward(self, batch: Any, ask: Ask) -> Outputs:
        """What is asked of `batch`."""
        found: Outputs = (self.engine or self.forward_of_one)(batch, ask)
        return found
