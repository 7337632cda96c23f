"""A causal model of which only one decoder layer is in memory at a time.

The model is transformers' own class. Its layers are built without weights, and its own forward runs with stand-ins in
their place: once for each row to learn what every layer is called with (positions, masks), and once more at the end
with the last hidden states put in, for norm, head and whatever lies between them. So nothing here knows families; a
model that does something to hidden states between its layers is found out and refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.hf import build_empty

Read = Callable[[str], Tensor]
"""From the name of a tensor to its numbers, float32."""


class Row(NamedTuple):
    """One row of tokens on its way: `ids` [1, T], and for each layer what it is called with beside hidden states."""

    ids: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]


class _StandIn(nn.Module):
    """Takes a layer's place: notes its call, and answers with `answer`, or with what it was given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer
        self.calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []
        self.answer: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        # some models ask their layers what kind of attention they have
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append((hidden, args, kwargs))
        return hidden if self.answer is None else self.answer


class StreamedModel:
    """The model in `folder`, empty. `linears` and `prefix` are names as its weights have them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: Any = build_empty(folder)
        named = {name: module for name, module in self.model.named_modules() if isinstance(module, nn.ModuleList)}
        count = getattr(self.model.config.get_text_config(), "num_hidden_layers", 0)
        stacks = [name for name, module in named.items() if len(module) == count and count]
        if not stacks:
            raise ConfigError(
                f"{folder}: {type(self.model).__name__} has no list of decoder layers to go through", USAGE
            )
        self.prefix = stacks[0]
        self.layers: list[nn.Module] = list(named[self.prefix])
        self.linears = [name for name, module in self.model.named_modules() if type(module) is nn.Linear]
        owner, _, leaf = self.prefix.rpartition(".")
        self._stand_ins = [_StandIn(layer) for layer in self.layers]
        setattr(self.model.get_submodule(owner), leaf, nn.ModuleList(self._stand_ins))

    @property
    def num_parameters(self) -> int:
        parts: list[nn.Module] = [self.model, *self.layers]
        return sum(p.numel() for part in parts for p in part.parameters())

    @property
    def tied(self) -> set[str]:
        """Linear layers outside the layers whose weight is the embedding's."""
        keys = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        return {name for name in self.linears if f"{name}.weight" in keys}

    def expected(self) -> list[str]:
        """Names of all tensors that the model's class has, but for those tied to another."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        outside = [name for name, _ in self.model.named_parameters(remove_duplicate=False) if name not in tied]
        inside = [
            f"{self.prefix}.{index}.{name}" for index, layer in enumerate(self.layers) for name in layer.state_dict()
        ]
        return outside + inside

    def load_ends(self, read: Read) -> None:
        """Give everything outside the layers its weights: embedding, norm, head."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False) if name not in tied]
        self.model.load_state_dict({name: read(name) for name in names}, strict=False, assign=True)
        self.model.tie_weights()

    def unload_ends(self) -> None:
        """Free them."""
        for module in self.model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    def start(self, ids: list[int]) -> tuple[Row, Tensor]:
        """A row, and its hidden states [1, T, D] before the first layer. The ends must be loaded."""
        row = torch.tensor([ids])
        for stand_in in self._stand_ins:
            stand_in.calls, stand_in.answer = [], None
        with torch.inference_mode():
            self.model(input_ids=row, use_cache=False, logits_to_keep=1)
        seen = [stand_in.calls for stand_in in self._stand_ins]
        first = seen[0][0][0] if seen[0] else None
        if first is None or any(len(calls) != 1 or calls[0][0] is not first for calls in seen):
            raise ConfigError(
                f"{self.folder}: {type(self.model).__name__} changes hidden states between its layers, so they cannot"
                " be gone through one by one; quantize it with --method rtn --parity off"
            )
        return Row(row, [(calls[0][1], calls[0][2]) for calls in seen]), first

    def load_layer(self, index: int, read: Read) -> nn.Module:
        """Layer `index` with its weights."""
        layer = self.layers[index]
        names = layer.state_dict().keys()
        layer.load_state_dict({name: read(f"{self.prefix}.{index}.{name}") for name in names}, assign=True)
        return layer.requires_grad_(False)

    def unload_layer(self, index: int) -> None:
        """Free its weights."""
        layer = self.layers[index]
        layer.load_state_dict({name: value.to("meta") for name, value in layer.state_dict().items()}, assign=True)

    def through(self, index: int, row: Row, hidden: Tensor) -> Tensor:
        """Hidden states after layer `index`, which is loaded."""
        args, kwargs = row.calls[index]
        with torch.inference_mode():
            answer = self.layers[index](hidden, *args, **kwargs)
        after: Tensor = answer[0] if isinstance(answer, tuple) else answer
        return after

    def logits(self, row: Row, hidden: Tensor) -> Tensor:
        """Logits [T, V] from the hidden states after the last layer. The ends must be loaded."""
        for stand_in in self._stand_ins:
            stand_in.calls = []
        self._stand_ins[-1].answer = hidden
        with torch.inference_mode():
            answer: Tensor = self.model(input_ids=row.ids, use_cache=False).logits[0]
        self._stand_ins[-1].answer = None
        return answer.float()
