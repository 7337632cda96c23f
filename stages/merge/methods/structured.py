"""Changes with a structure of their own: spectra, circulants, repeated shards, single elements."""

import numpy as np

from postmill.stages.merge.edits import F32, I64, Array
from postmill.stages.merge.methods.module import Edits, Module


def fourierft(module: Module) -> Edits:
    """`W + scaling * real(ifft2(S))`, S zero but for n places. Source: FourierFT, <https://arxiv.org/abs/2405.03003>.

    The places are not saved: they are the first n of torch's random permutation of all, from a seed.
    """
    module.need_full_strength()
    num_out, num_in = module.linear()
    spectrum = module.part("fourierft_spectrum")
    seed = int(module.config.get("random_loc_seed") or 0)
    places = first_of_permutation(num_out * num_in, len(spectrum), seed)
    scale = float(module.config["scaling"])

    def add(weight: F32) -> F32:
        dense = np.zeros((num_out, num_in))
        dense[places // num_in, places % num_in] = spectrum
        delta: F32 = (np.fft.ifft2(dense).real * scale).astype(np.float32)
        return weight + delta

    return module.whole(add)


def first_of_permutation(count: int, wanted: int, seed: int) -> I64:
    """`torch.randperm(count, generator=seeded)[:wanted]`: Fisher and Yates with the Mersenne Twister's words."""
    words = np.random.RandomState(seed)._bit_generator.random_raw(wanted)
    moved: dict[int, int] = {}
    first = np.empty(wanted, np.int64)
    for place in range(wanted):
        other = place + int(words[place] % (count - place))
        first[place] = moved.get(other, other)
        moved[other] = moved.get(place, place)
    return first


def c3a(module: Module) -> Edits:
    """`W + C / in`, C of circulant blocks: `C[m b + s, n b + j] = kernel[m, n, (j - s) mod b]`.

    Source: C3A, <https://arxiv.org/abs/2407.19342>.
    """
    module.need_full_strength()
    _, num_in = module.linear()
    kernel = module.part("c3a_kernel")
    size = kernel.shape[2]
    columns = np.arange(size)

    def rows(weight: F32, start: int) -> F32:
        mine = np.arange(start, start + len(weight))
        shift = (columns[None, :] - (mine % size)[:, None]) % size
        blocks = np.take_along_axis(kernel[mine // size], shift[:, None, :], axis=2)
        weight += blocks.reshape(weight.shape) / np.float32(num_in)
        return weight

    return module.row_wise(rows)


def miss(module: Module) -> Edits:
    """`W + D`, one shard repeated along the inputs: `D[o, c] = block[c mod r, o]`; "bat" also multiplies by W's shard.

    Source: MiSS, <https://arxiv.org/abs/2409.15371>.
    """
    return _shards(module, module.part("miss_block"))


def bone(module: Module) -> Edits:
    """MiSS under its first name."""
    return _shards(module, module.part("bone_block"))


def _shards(module: Module, block: Array) -> Edits:
    module.need_full_strength()
    num_out, num_in = module.linear()
    kind = module.config.get("init_weights")
    if kind == "bat":
        return module.row_wise(lambda weight, start: _bat(weight, start, block))
    if kind == "mini":
        block = np.tile(block, (1, num_out // block.shape[1]))
    repeated = np.arange(num_in) % len(block)

    def rows(weight: F32, start: int) -> F32:
        weight += block.T[start : start + len(weight)][:, repeated]
        return weight

    return module.row_wise(rows)


def _bat(weight: F32, start: int, block: Array) -> F32:
    """`W_shard + W_shard B + B`. block: (out / r, r, r), one for each r rows."""
    size = block.shape[2]
    mine = np.arange(start, start + len(weight))
    split = weight.reshape(len(weight), -1, size)
    changed: F32 = split + split @ block[mine // size] + block[mine // size, mine % size][:, None, :]
    return changed.reshape(weight.shape)


def shira(module: Module) -> Edits:
    """`W[i, j] += w` at some places. Source: SHiRA, <https://arxiv.org/abs/2406.13175>."""
    module.need_full_strength()
    module.linear()
    rows, columns = module.part("shira_indices").astype(np.int64)
    values = module.part("shira_weight")

    def add(weight: F32, start: int) -> F32:
        mine = (rows >= start) & (rows < start + len(weight))
        np.add.at(weight, (rows[mine] - start, columns[mine]), values[mine])
        return weight

    return module.row_wise(add)
