"""Which linear layer gets which grid, decided from names and shapes before a weight is read."""

import re
from typing import NamedTuple

from postmill.io.errors import USAGE, ConfigError
from postmill.io.safetensors_file import Weights
from postmill.kernels.quantize.grid import Form
from postmill.stages.quantize.config import Quantize

DTYPES = ("F32", "F16", "BF16")
KEEP = "keep"
_SCHEMES = {"w2a16": 2, "w4a16": 4, "w8a16": 8, "w8a8": 8, "fp8": 8}


class Target(NamedTuple):
    """What becomes of one linear layer. `activations`: `int8` or `fp8` where they are quantized too, else empty."""

    scheme: str
    form: Form
    activations: str

    @property
    def layout(self) -> str:
        """The layout of compressed-tensors that holds it."""
        return {"": "pack-quantized", "int8": "int-quantized", "fp8": "float-quantized"}[self.activations]


class Plan(NamedTuple):
    """`targets` by module; `kept`: the other linear layers; `shapes`: [N, K] of every target."""

    targets: dict[str, Target]
    kept: list[str]
    shapes: dict[str, tuple[int, int]]

    @property
    def fewest_bits(self) -> int:
        return min(target.form.bits for target in self.targets.values())


def make_plan(cfg: Quantize, weights: Weights, linears: list[str], in_layers: set[str], tied: set[str]) -> Plan:
    """Decide for every linear layer of the model.

    linears: names of modules, in order; in_layers: those inside decoder layers; tied: those that share the embedding.
    Raises ConfigError (2) for a rule that is none or matches nothing, and for layers that the group does not divide.
    """
    rules = [_rule(text) for text in cfg.rule]
    targets: dict[str, Target] = {}
    kept, shapes, used = [], {}, set()
    for name in linears:
        scheme = cfg.scheme if name in in_layers else KEEP
        for index, (pattern, says) in enumerate(rules):
            if pattern.search(name):
                scheme = says
                used.add(index)
        if scheme == KEEP:
            kept.append(name)
            continue
        if name in tied:
            raise ConfigError(
                f"{name}: shares its weight with the embedding and cannot be quantized; remove its --rule"
            )
        entry = weights.entry(f"{name}.weight")
        if entry.dtype not in DTYPES:
            raise ConfigError(
                f"{name}: is stored as {entry.dtype}, expected F32, F16 or BF16; use an unquantized model"
            )
        shapes[name] = (entry.shape[0], entry.shape[1])
        targets[name] = make_target(scheme, cfg)
    unused = [cfg.rule[index] for index in range(len(rules)) if index not in used]
    if unused:
        raise ConfigError(f"--rule {unused[0]}: matches none of {len(linears)} linear layers, like {linears[0]}", USAGE)
    if not targets:
        raise ConfigError("no linear layer is left to quantize; loosen --rule", USAGE)
    _check_groups(targets, shapes)
    return Plan(targets, kept, shapes)


def make_target(scheme: str, cfg: Quantize) -> Target:
    """The grid that a scheme stands for."""
    if scheme.endswith("a16"):
        return Target(scheme, Form(_SCHEMES[scheme], max(cfg.group_size, 0), cfg.symmetric), "")
    return Target(scheme, Form(8, 0, True, scheme == "fp8"), "fp8" if scheme == "fp8" else "int8")


def _rule(text: str) -> tuple[re.Pattern[str], str]:
    pattern, _, scheme = text.rpartition("=")
    if not pattern or scheme not in (*_SCHEMES, KEEP):
        raise ConfigError(
            f"--rule {text}: expected REGEX=SCHEME, where SCHEME is {', '.join((*_SCHEMES, KEEP))}", USAGE
        )
    try:
        return re.compile(pattern), scheme
    except re.error as error:
        raise ConfigError(f"--rule {text}: {error}", USAGE) from None


def _check_groups(targets: dict[str, Target], shapes: dict[str, tuple[int, int]]) -> None:
    ragged = [name for name, target in targets.items() if target.form.group and shapes[name][1] % target.form.group]
    if ragged:
        columns, group = shapes[ragged[0]][1], targets[ragged[0]].form.group
        fitting = [str(size) for size in (128, 64, 32) if not any(shapes[name][1] % size for name in ragged)]
        remedy = f"--group-size {fitting[0]}" if fitting else "--group-size -1"
        raise ConfigError(
            f"{ragged[0]}: {columns} columns are no multiple of --group-size {group}, in {len(ragged)} layers; pass"
            f" {remedy}",
            USAGE,
        )
