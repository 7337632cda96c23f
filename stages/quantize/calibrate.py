"""Weights chosen by what goes through them: layer after layer, each fed by the quantized layers before it.

A layer is loaded, the rows go through it to learn the second moment of every linear layer's inputs, its weights get
their codes, and the rows go through it once more as it will be. Then its codes and the hidden states are on disk: a
run that is stopped goes on with the next layer, to the same bytes. Memory holds one layer and its moments.
"""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from postmill.io.safetensors_file import Weights
from postmill.kernels.quantize.grid import count_clipped, decode
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Out
from postmill.stages.quantize.activations import rounded_activations
from postmill.stages.quantize.config import Quantize
from postmill.stages.quantize.experts import by_class
from postmill.stages.quantize.fold import Inputs, fold
from postmill.stages.quantize.formats.table import FORMATS, scale_dtype
from postmill.stages.quantize.layers import Row, StreamedModel
from postmill.stages.quantize.plan import Plan
from postmill.stages.shared.quantized_weights import TORCH_DTYPES, read_float32

_REPLACED = "="
"""Before the name of a replaced tensor in a layer's file."""


class Chosen:
    """Tensors of the layers that were calibrated, as they will be stored, in files by layer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file_of: dict[str, Path] = {}
        self.replaced: dict[str, Path] = {}
        """Tensors that are not quantized and yet have other numbers now: norms that took scales."""
        for path in sorted(folder.glob("layer-*.safetensors")):
            with safe_open(path, "pt") as file:
                self._file_of |= dict.fromkeys(file.metadata(), path)
                names: list[str] = list(file.keys())
                self.replaced |= {n.removeprefix(_REPLACED): path for n in names if n.startswith(_REPLACED)}

    def __contains__(self, module: str) -> bool:
        return module in self._file_of

    def read_replaced(self, name: str) -> Tensor:
        """One of `replaced`, as it is stored."""
        with safe_open(self.replaced[name], "pt") as file:
            found: Tensor = file.get_tensor(_REPLACED + name)
            return found

    def read(self, module: str) -> tuple[dict[str, Tensor], int]:
        """The tensors of a module, and how many of its weights lie outside their grid."""
        with safe_open(self._file_of[module], "pt") as file:
            names = file.keys()
            parts = {name: file.get_tensor(name) for name in names if name.rpartition(".")[0] == module}
            return parts, int(file.metadata()[module])


class States:
    """Hidden states of all rows before one layer: a file of float32 [tokens, D]."""

    def __init__(self, folder: Path, layer: int, lengths: list[int], width: int) -> None:
        self.path = folder / f"states-{layer:04d}.f32"
        self._bounds = [0, *itertools.accumulate(lengths)]
        mode: Any = "r+" if self.path.exists() else "w+"
        self._map = np.memmap(self.path, np.float32, mode, shape=(self._bounds[-1], width))

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(np.array(self._map[self._bounds[row] : self._bounds[row + 1]]))[None]

    def put(self, row: int, states_1TD: Tensor) -> None:
        self._map[self._bounds[row] : self._bounds[row + 1]] = states_1TD[0].numpy()

    def flush(self) -> None:
        self._map.flush()


class _Layers:
    """The model's layers, one after another, with the rows that go through them."""

    def __init__(self, cfg: Quantize, plan: Plan, model: StreamedModel, weights: Weights, threads: int) -> None:
        self.cfg, self.plan, self.model, self.weights, self.threads = cfg, plan, model, weights, threads
        self.calls: list[Row] = []
        self.pool = ThreadPoolExecutor(threads)

    def read(self, name: str) -> Tensor:
        """A tensor of the class, float32."""
        return by_class(lambda own: read_float32(self.weights, own), self.weights.where)(name)

    def begin(self, rows: list[list[int]]) -> list[Tensor]:
        """Hidden states [1, T, D] of all rows before the first layer."""
        self.model.load_ends(self.read)
        begun = [self.model.start(ids) for ids in rows]
        self.model.unload_ends()
        self.calls = [row for row, _ in begun]
        return [hidden for _, hidden in begun]

    def choose(self, index: int, states: States) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The stored tensors of a layer's targets, and how many weights of each are clipped.

        The layer, which is loaded, gets the weights that they mean.
        """
        layer, prefix = self.model.layers[index], f"{self.model.prefix}.{index}."
        modules: dict[str, nn.Linear] = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and f"{prefix}{name}" in self.plan.targets
        }
        layer_inputs = self._look(index, modules, states)
        replaced: dict[str, Tensor] = {}
        if hasattr(self.cfg.method, "scales"):
            with torch.inference_mode():
                layer_inputs, replaced = self._fold(index, layer_inputs, states)
        moments = {name: inputs.moment for inputs in layer_inputs for name in inputs.readers}

        def solve(name: str) -> tuple[dict[str, Tensor], int]:
            target = self.plan.targets[f"{prefix}{name}"]
            dtype = scale_dtype(self.cfg.layout, self.dtype_of(f"{prefix}{name}.weight"))
            with torch.inference_mode():
                weight = modules[name].weight
                encoded = self.cfg.method.encode(weight, target.form, dtype, moments[name])
                clipped = count_clipped(encoded, weight, target.form)
            modules[name].weight = nn.Parameter(decode(encoded), requires_grad=False)
            return FORMATS[self.cfg.layout].tensors(f"{prefix}{name}", target, encoded), clipped

        stored: dict[str, Tensor] = {
            f"{_REPLACED}{prefix}{name}": values.to(self.dtype_of(f"{prefix}{name}"))
            for name, values in replaced.items()
        }
        clipped: dict[str, int] = {}
        for name, (parts, count) in zip(modules, self.pool.map(solve, modules), strict=True):
            stored |= {key: tensor.contiguous() for key, tensor in parts.items()}
            clipped[f"{prefix}{name}"] = count
        return stored, clipped

    def dtype_of(self, name: str) -> torch.dtype:
        """In which a tensor of the source is stored."""
        return TORCH_DTYPES[self.weights.entry(name).dtype]

    def _fold(self, index: int, layer_inputs: list[Inputs], states: States) -> tuple[list[Inputs], dict[str, Tensor]]:
        """Put the method's scales into the layer, which is loaded."""
        prefix = f"{self.model.prefix}.{index}."

        def scales(names: list[str], weights: list[Tensor], inputs: Inputs) -> Tensor | None:
            forms = {self.plan.targets[f"{prefix}{name}"].form for name in names}
            if len(forms) > 1:
                return None
            dtype = scale_dtype(self.cfg.layout, self.dtype_of(f"{prefix}{names[0]}.weight"))
            chosen: Tensor | None = self.cfg.method.scales(
                weights, forms.pop(), dtype, moment=inputs.moment, largest=inputs.largest
            )
            return chosen

        return fold(
            self.model.layers[index],
            layer_inputs,
            scales,
            foldable=lambda name: f"{prefix}{name}" in self.plan.targets,
            answer=lambda: self.model.through(index, self.calls[0], states[0]),
            stored=lambda name, values: values.to(self.dtype_of(f"{prefix}{name}")).float(),
        )

    def _look(self, index: int, modules: dict[str, nn.Linear], states: States) -> list[Inputs]:
        """What goes into each module over all rows; modules that are fed the same have one."""
        here = threading.local()
        sums: dict[str, Tensor] = {}
        largest: dict[str, Tensor] = {}
        leader: dict[str, str] = {}
        makers: dict[str, str] = {}
        layer = self.model.layers[index]
        norms = [name for name, m in layer.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 1]

        def look(row: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            here.seen, here.made = {}, {}
            self.model.through(index, self.calls[row], states[row])
            return here.seen, here.made

        def add(name: str, found: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> None:
            with torch.inference_mode():
                for seen, _ in found:  # in the order of rows: equal bits for any number of threads
                    flat = seen[name].reshape(-1, seen[name].shape[-1])
                    sums[name].addmm_(flat.T, flat)
                    largest[name] = torch.maximum(largest[name], flat.abs().amax(0))

        with ExitStack() as hooks:
            for name, module in modules.items():
                handle = module.register_forward_pre_hook(
                    lambda _, given, name=name: here.seen.__setitem__(name, given[0])
                )
                hooks.callback(handle.remove)
            for name in norms:
                handle = layer.get_submodule(name).register_forward_hook(
                    lambda _, __, made, name=name: here.made.__setitem__(name, made)
                )
                hooks.callback(handle.remove)
            for start in range(0, len(self.calls), self.threads):
                found = list(self.pool.map(look, range(start, min(start + self.threads, len(self.calls)))))
                if not leader:
                    seen, made = found[0]
                    leader = _leaders(seen)
                    for name in leader.values():
                        width = seen[name].shape[-1]
                        sums[name], largest[name] = torch.zeros(width, width), torch.zeros(width)
                        makers[name] = next((norm for norm, values in made.items() if values is seen[name]), "")
                for waited in [self.pool.submit(add, name, found) for name in sums]:
                    waited.result()
        return [
            Inputs([name for name, first in leader.items() if first == own], sums[own], largest[own], makers[own])
            for own in sums
        ]

    def go_on(self, index: int, before: States, after: States) -> None:
        """Take all rows through a layer, which is loaded."""

        def through(row: int) -> Tensor:
            return self.model.through(index, self.calls[row], before[row])

        with rounded_activations(self.plan, f"{self.model.prefix}.{index}.", self.model.layers[index]):
            for row, hidden in enumerate(self.pool.map(through, range(len(self.calls)))):
                after.put(row, hidden)
        after.flush()


def _leaders(seen: dict[str, Tensor]) -> dict[str, str]:
    """For each module the first that was given the very same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in seen.items()}


def calibrate(
    cfg: Quantize, plan: Plan, rows: list[list[int]], out: Out, *, model: StreamedModel, weights: Weights
) -> Chosen:
    """Choose the codes of every target inside the layers. Raises StageError (75) when stopped, whole layers kept."""
    out.stop.graceful = True
    folder = out.checkpoints / out.key.rpartition(":")[2][:16]
    folder.mkdir(parents=True, exist_ok=True)
    layers = _Layers(cfg, plan, model, weights, out.threads)
    begun = layers.begin(rows)
    lengths, width = [len(ids) for ids in rows], begun[0].shape[-1]
    paths = [folder / f"layer-{index:04d}.safetensors" for index in range(len(model.layers))]
    first = next((index for index, path in enumerate(paths) if not path.is_file()), len(paths))
    if first == 0:
        states = States(folder, 0, lengths, width)
        for row, hidden in enumerate(begun):
            states.put(row, hidden)
    del begun
    meter = Meter(len(paths), first)
    with layers.pool:
        for index in range(first, len(paths)):
            if out.stop.requested:
                raise out.stop.stopped(f"{index} of {len(paths)} layers are done")
            before, after = (States(folder, number, lengths, width) for number in (index, index + 1))
            model.load_layer(index, layers.read)
            chosen, clipped = layers.choose(index, before)
            layers.go_on(index, before, after)
            model.unload_layer(index)
            new = paths[index].with_suffix(".new")
            save_file(chosen, new, {module: str(count) for module, count in clipped.items()})
            new.replace(paths[index])
            before.path.unlink()
            Progress.say("quantize", meter.of(index + 1, "layers"))
    return Chosen(folder)
