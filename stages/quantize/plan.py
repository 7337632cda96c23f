"""Which linear layer gets which grid, decided from names and shapes before a weight is read."""

import re
from typing import NamedTuple

from postmill.io.errors import USAGE, ConfigError
from postmill.io.safetensors_file import Weights
from postmill.kernels.quantize.grid import BLOCK, Form
from postmill.stages.quantize.config import Quantize

DTYPES = ("F32", "F16", "BF16")
KEEP = "keep"


class Target(NamedTuple):
    """What becomes of one linear layer. `activations`: `int8` or `fp8` where they are quantized too, else empty."""

    scheme: str
    form: Form
    activations: str

    @property
    def layout(self) -> str:
        """The layout of compressed-tensors that holds it."""
        own = {"e4m3": "nvfp4-pack-quantized", "e8m0": "mxfp4-pack-quantized"}
        if self.form.scales in own:
            return own[self.form.scales]
        return {"": "pack-quantized", "int8": "int-quantized", "fp8": "float-quantized"}[self.activations]

    @property
    def activation_group(self) -> int:
        """Activations that share a scale; 0 is all of a token."""
        return BLOCK if self.form.scales == "block" else 0


_FIXED = {
    "w8a8": Target("w8a8", Form(8, 0, True), "int8"),
    "fp8": Target("fp8", Form(8, 0, True, True), "fp8"),
    "fp8_block": Target("fp8_block", Form(8, BLOCK, True, True, "block"), "fp8"),
    "nvfp4a16": Target("nvfp4a16", Form(4, 16, True, True, "e4m3"), ""),
    "mxfp4a16": Target("mxfp4a16", Form(4, 32, True, True, "e8m0"), ""),
}
"""Schemes that leave nothing to choose."""
_BITS = {"w2a16": 2, "w4a16": 4, "w8a16": 8}
"""Those that take `--group-size` and `--symmetric`."""
SCHEMES = (*_BITS, *_FIXED)


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
    _check_layout(cfg.layout, targets, shapes)
    return Plan(targets, kept, shapes)


def make_target(scheme: str, cfg: Quantize) -> Target:
    """The grid that a scheme stands for."""
    if scheme in _FIXED:
        return _FIXED[scheme]
    return Target(scheme, Form(_BITS[scheme], max(cfg.group_size, 0), cfg.symmetric), "")


def _rule(text: str) -> tuple[re.Pattern[str], str]:
    pattern, _, scheme = text.rpartition("=")
    if not pattern or scheme not in (*SCHEMES, KEEP):
        raise ConfigError(f"--rule {text}: expected REGEX=SCHEME, where SCHEME is {', '.join((*SCHEMES, KEEP))}", USAGE)
    try:
        return re.compile(pattern), scheme
    except re.error as error:
        raise ConfigError(f"--rule {text}: {error}", USAGE) from None


def _check_groups(targets: dict[str, Target], shapes: dict[str, tuple[int, int]]) -> None:
    ragged = [name for name, target in targets.items() if target.form.group and shapes[name][1] % target.form.group]
    if ragged:
        columns, group = shapes[ragged[0]][1], targets[ragged[0]].form.group
        fitting = [str(size) for size in (128, 64, 32) if not any(shapes[name][1] % size for name in ragged)]
        remedy = f"pass --group-size {fitting[0] if fitting else -1}"
        said = f"--group-size {group}"
        if (scheme := targets[ragged[0]].scheme) in _FIXED:
            said, remedy = f"{group}, which {scheme} needs", "keep them by --rule, or pass another --scheme"
        raise ConfigError(
            f"{ragged[0]}: {columns} columns are no multiple of {said}, in {len(ragged)} layers; {remedy}", USAGE
        )


def _check_layout(layout: str, targets: dict[str, Target], shapes: dict[str, tuple[int, int]]) -> None:
    """Raises ConfigError (2) for what the layouts of GPTQ and AWQ cannot hold."""
    if layout == "compressed-tensors":
        return
    schemes = sorted({target.scheme for target in targets.values()})
    allowed = tuple(_BITS) if layout == "gptq" else ("w4a16",)
    if len(schemes) > 1 or schemes[0] not in allowed:
        raise ConfigError(
            f"--layout {layout}: holds one of {', '.join(allowed)} for all layers, not {', '.join(schemes)}; pass"
            " another --scheme, or --layout compressed-tensors",
            USAGE,
        )
    per_word = 32 // _BITS[schemes[0]]
    ragged = [name for name, shape in shapes.items() if shape[0] % per_word or shape[1] % per_word]
    if ragged:
        raise ConfigError(
            f"{ragged[0]}: its shape {shapes[ragged[0]]} is no multiple of the {per_word} codes of a word of --layout"
            f" {layout}; keep it by --rule, or pass --layout compressed-tensors",
            USAGE,
        )
