"""Pipeline parallelism: the layers are cut into stages, and micro-batches follow each other through them.

A stage sends hidden states to the next and gradients to the one before. The order is one forward, one backward (1F1B):
a stage that is s away from the last runs s micro-batches ahead, so it holds the activations of s + 1 of them, however
many there are. The plan knows the length of every bin, so no shape is ever sent. Source: PipeDream-Flush,
<https://arxiv.org/abs/2006.09503>, and Megatron-LM, <https://arxiv.org/abs/2104.04473>.

The model keeps all its modules and names; what another stage has is a parameter without memory (`meta`).
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.forward import Forward
from postmill.stages.shared.hf import decoder_of
from postmill.stages.train.parallel.options import IN_STAGES


class Stage:
    """This rank's stage. `ahead` and `back` are groups of the same ranks, one for each direction: were they one, NCCL
    would wait for a message of the other direction first."""

    def __init__(self, ahead: dist.ProcessGroup, back: dist.ProcessGroup, device: torch.device) -> None:
        self.ahead, self._back, self._device = ahead, back, device
        self.index, self.count = dist.get_rank(ahead), dist.get_world_size(ahead)
        self.is_first, self.is_last = self.index == 0, self.index == self.count - 1
        self._inputs: deque[Tensor | None] = deque()
        self._outputs: deque[Tensor] = deque()
        self._sent: list[tuple[Any, Tensor]] = []

    def order(self, num_blocks: int) -> Iterator[tuple[int, bool]]:
        """Which micro-batch is computed next, and whether forward."""
        ahead = min(self.count - 1 - self.index, num_blocks)
        for number in range(ahead):
            yield number, True
        for number in range(num_blocks - ahead):
            yield ahead + number, True
            yield number, False
        for number in range(num_blocks - ahead, num_blocks):
            yield number, False

    def receive(self, num_tokens: int, like: Tensor) -> Tensor:
        """Hidden states of the stage before, [1, T, H], in the dtype and width of the embedding `like`."""
        hidden = torch.empty(1, num_tokens, like.shape[-1], dtype=like.dtype, device=self._device)
        dist.recv(hidden, group=self.ahead, group_src=self.index - 1)
        return hidden.requires_grad_(torch.is_grad_enabled())

    def keep(self, received: Tensor | None, hidden_1TH: Tensor) -> None:
        """Hand hidden states on, unless this is the last stage, and remember both ends for the backward pass."""
        if torch.is_grad_enabled():
            self._inputs.append(received)
        if self.is_last:
            return
        if torch.is_grad_enabled():
            self._outputs.append(hidden_1TH)
        self._send(hidden_1TH, self.ahead, self.index + 1)

    def backward(self, loss: Tensor | None) -> None:
        """Of the oldest micro-batch that is there: from the loss, or from the gradient that the next stage sends."""
        received = self._inputs.popleft()
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            hidden = self._outputs.popleft()
            gradient = torch.empty_like(hidden)
            dist.recv(gradient, group=self._back, group_src=self.index + 1)
            torch.autograd.backward(hidden, gradient)
        if received is not None:
            assert received.grad is not None
            self._send(received.grad, self._back, self.index - 1)
        if not self._inputs:
            self.settle()

    def settle(self) -> None:
        """Wait until all that was sent has arrived."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()

    def _send(self, tensor: Tensor, group: dist.ProcessGroup, to: int) -> None:
        tensor = tensor.detach().contiguous()
        if len(self._sent) > 2 * self.count:
            self._sent.pop(0)[0].wait()
        self._sent.append((dist.isend(tensor, group=group, group_dst=to), tensor))


def check(model: Any, size: int) -> None:
    """Raise ConfigError (2) for a model that cannot be cut into `size` stages."""
    family = model.config.model_type
    if family not in IN_STAGES:
        raise ConfigError(f"--pp {size}: {family} models were not tested in stages; {', '.join(IN_STAGES)} are", USAGE)
    layers = model.config.num_hidden_layers
    if layers < size:
        raise ConfigError(f"--pp {size}: the model has {layers} layers; take at most as many stages", USAGE)


def cut(forward: Forward, stage: Stage) -> dict[int, int]:
    """Leave this rank the layers of `stage`, in place. Returns by `id` of a parameter which stage saves it."""
    model = forward.model
    check(model, stage.count)
    decoder = decoder_of(model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    last, num_layers = stage.count - 1, len(decoder.layers)
    owner: list[tuple[nn.Module, int]] = [(embedding, 0), (decoder.norm, last), (head, last)]
    owner += [(layer, number * stage.count // num_layers) for number, layer in enumerate(decoder.layers)]
    is_tied = head.weight is embedding.weight
    for module, at in owner:
        if at == stage.index:
            continue
        if module is head or module is embedding:
            if not (is_tied and (stage.is_first or stage.is_last)):
                _drop(module)
        else:
            _drop(module)
            # the decoder calls it in the row of all layers
            module.forward = _as_it_comes
    if is_tied:
        head.weight = embedding.weight
    forward.take_stage(stage)
    of: dict[int, int] = {}
    for module, at in owner:
        for parameter in module.parameters():
            of.setdefault(id(parameter), at)  # the embedding comes first, so a tied head is the first stage's
    return of


def _as_it_comes(hidden_1TH: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_1TH


def _drop(module: nn.Module) -> None:
    """Parameters without memory in the place of those of `module`."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            nothing = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            part._parameters[name] = nn.Parameter(nothing, requires_grad=parameter.requires_grad)
