"""How the GPU kernels are launched: tile shapes by generation of GPU, and how much one program takes.

Letters: V vocabulary, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

GROUP_M = 16
"""Row tiles that share a tile of the head while it is in the L2 cache."""
REDUCE_ROWS, REDUCE_TILES = 16, 64
"""Rows of one program of the reduction over tiles, and tiles it takes at once."""
DZ_ROWS, DZ_PROGRAMS = 16, 8
"""Rows of one program, at a time, that makes dz of E, and programs a multiprocessor."""
MAX_PARTS, MAX_ROUNDS, JOIN_ROWS = 8, 8, 16
"""Parts that a tile of dX may be summed in; rounds of the GPU's multiprocessors that all parts may fill; rows of one
program that joins them."""
BIAS_BLOCK = 64
"""Rows, at a time, and entries of one program of the bias's gradient."""
SCALE_BLOCK = 4096
"""Entries of one program, at a time, of the scaling of gradients."""


class Blocks(NamedTuple):
    """Tile shapes of one kernel."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


class Tuning(NamedTuple):
    """Tile shapes for one generation of GPUs; the m of `wide_logits` is a multiple of that of `weight`."""

    logits: Blocks
    """A forward pass that needs z only to make E."""
    wide_logits: Blocks
    """A pass over logits that holds z and something made of it at once: sums for smoothing or entropy, a cap, dz."""
    hidden: Blocks
    """k is the width in H."""
    weight: Blocks
    """k is the width in H."""
    has_descriptors: bool = False
    """Whether matrices are read through tensor descriptors. Without a copy engine they would be read entry by entry."""
    flatten: bool = False
    """Whether the loads of a tile start while the tile before is being finished. On sm_80 Triton would then not run
    any loads ahead."""


TUNINGS = {
    # Fastest of a dozen on an H200 (bench/LOG.md).
    "hopper": Tuning(
        Blocks(128, 256, 64, 8, 3),
        Blocks(128, 128, 64, 8, 4),
        Blocks(128, 64, 256, 8, 3),
        Blocks(64, 128, 256, 8, 4),
        has_descriptors=True,
        flatten=True,
    ),
    # The rest: chosen for what compiles without spills within the shared memory of the chip; not yet timed on one.
    "blackwell": Tuning(
        Blocks(128, 256, 64, 8, 3),
        Blocks(128, 128, 64, 8, 4),
        Blocks(128, 64, 128, 8, 4),
        Blocks(64, 128, 128, 8, 4),
        has_descriptors=True,
    ),
    "ampere": Tuning(
        Blocks(128, 128, 32, 8, 3), Blocks(128, 64, 32, 4, 3), Blocks(128, 32, 128, 8, 3), Blocks(32, 128, 128, 8, 3)
    ),
    "float32": Tuning(
        Blocks(128, 64, 32, 8, 2), Blocks(128, 64, 32, 8, 2), Blocks(64, 32, 64, 8, 2), Blocks(32, 64, 128, 8, 2)
    ),
}
TUNINGS["float32 on blackwell"] = TUNINGS["float32"]._replace(wide_logits=Blocks(64, 64, 32, 8, 2))


def tuning_for(dtype: torch.dtype, capability: int) -> Tuning:
    """Tile shapes by input dtype and compute capability (80, 90, 100, ...); 120 has the shared memory of Ampere."""
    name = {90: "hopper", 100: "blackwell", 103: "blackwell"}.get(capability, "ampere")
    if dtype == torch.float32:
        name = "float32 on blackwell" if name == "blackwell" else "float32"
    return TUNINGS[name]
