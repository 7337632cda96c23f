"""Pixels: what the processor makes of each file that rows name, decoded once, written by the digest of the file.

Files are made in threads and written in the order in which rows first name them, so the bytes are the same for any
number of threads. Memory is that of the files on their way and of a batch that waits to be written.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.media import Medium, media_in
from postmill.io.packed import PackedReader
from postmill.io.pixels import PIXELS, Shading, Tensors, to_batch
from postmill.io.schemas import PIXELS_V1
from postmill.stages.pixels.config import Pixels
from postmill.stages.progress import Progress
from postmill.stages.protocol import Input, Inputs, Out, Result
from postmill.stages.shared import hf
from postmill.stages.shared.in_order import in_order
from postmill.stages.shared.media import pixels
from postmill.stages.shared.media.families.table import processor_digest

_BATCH_BYTES = 16 << 20
"""Of tensors that are written together."""


def run(cfg: Pixels, inputs: Inputs, out: Out) -> Result:
    """Raises ArtifactError (65, 66) for a file that is damaged, gone or another one; (65) for rows without any."""
    folder = inputs["model"][0].path
    assert folder is not None
    torch.set_num_threads(1)  # of each of our own threads
    maker = pixels.Pixels(folder)
    table, num_bytes, num_written = out.table(PIXELS, PIXELS_V1), 0, 0
    pending: list[tuple[Medium, Tensors]] = []
    kinds: dict[str, int] = {}
    shading: dict[str, Shading | None] = {}

    def make(medium: Medium) -> tuple[Medium, Tensors]:
        return medium, {name: tensor.numpy() for name, tensor in maker.processed(medium).items()}

    def write() -> None:
        for kind in {medium.kind for medium, _ in pending} - shading.keys():
            shading[kind] = shading_of(maker.processor(kind))
        table.write(to_batch(pending, shading))
        pending.clear()

    for medium, made in in_order(make, _distinct(inputs["tokens"], maker), out.threads):
        pending.append((medium, made))
        kinds[medium.kind] = kinds.get(medium.kind, 0) + 1
        num_bytes += sum(tensor.nbytes for tensor in made.values())
        out.ledger.keep(1)
        if num_bytes - num_written >= _BATCH_BYTES:
            write()
            num_written = num_bytes
        Progress.say("pixels", f"{out.ledger.counts.kept:,} files")
    if not kinds:
        raise ArtifactError("the rows name no pictures, sounds or videos; there is nothing to make", BAD_DATA)
    if pending:
        write()
    table.close()
    return Result(
        metrics={"made": dict(sorted(kinds.items())), "tensor_bytes": num_bytes},
        digests={"processor": processor_digest(folder)},
        versions=hf.need("torch", "transformers", "PIL", remedy="pip install 'postmill[vision]'") | _torchvision(),
    )


def _torchvision() -> dict[str, str]:
    try:
        return hf.need("torchvision", remedy="")
    except ValueError:
        return {}  # some processors do without


def _distinct(tokens: Sequence[Input], maker: pixels.Pixels) -> Iterator[Medium]:
    """Each file once, in the order in which rows name them."""
    seen = set[bytes]()
    for given in tokens:
        assert given.path is not None and given.artifact is not None
        artifacts = PackedReader(given.path).tokens if given.kind == "packed" else [given.artifact]
        for medium in (medium for artifact in artifacts for medium in media_in(artifact)):
            if medium.digest not in seen:
                seen.add(medium.digest)
                maker.processor(medium.kind)  # loaded by this thread, once
                yield medium


def shading_of(processor: Any) -> Shading | None:
    """How a processor makes numbers of shades; None for one that makes spectra, or does not say."""
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None or std is None:
        return None
    if not getattr(processor, "do_normalize", True):
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    factor = float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0
    return Shading(factor, tuple(mean), tuple(std), int(getattr(processor, "temporal_patch_size", 1) or 1))
