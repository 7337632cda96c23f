"""Which tensor of the merged model comes from where, decided from headers alone, before a byte of weights is written.

The shards of the result are those of the base. Tied embeddings are the delicate part: an adapter on the embedding alone
leaves the head as it was (as PEFT computes it), so the two are no longer equal and the head gets a tensor of its own.
"""

import msgspec

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.safetensors_file import SafetensorsFile
from postmill.stages.merge.adapter import Adapter, check_fits
from postmill.stages.merge.arithmetic import DTYPES
from postmill.stages.merge.base import Base
from postmill.stages.merge.edits import Edit


class Source(msgspec.Struct):
    """One tensor of the result: bytes of `file`'s tensor `name`, with `edits`, as `dtype` and `shape`."""

    file: SafetensorsFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    edits: list[Edit]

    @property
    def is_copy(self) -> bool:
        return not self.edits and self.file.tensors[self.name].dtype == self.dtype


class Plan(msgspec.Struct):
    """`shards`: file -> tensor -> source, in the order of the base. The rest is for the config and the report."""

    shards: dict[str, dict[str, Source]]
    untied: bool
    vocab: tuple[int, int] | None
    """Rows of the embedding before and after."""


def make_plan(base: Base, adapters: list[Adapter], dtype: str | None = None) -> Plan:
    """`dtype` (BF16, ...) is what weights are saved in; None keeps the base's.

    Raises ArtifactError (78) if an adapter does not fit the base, ConfigError (2) if it cannot be merged into it."""
    weights = base.weights
    sources = {
        name: Source(weights.file_of(name), name, weights.entry(name).dtype, weights.entry(name).shape, [])
        for file in weights.files.values()
        for name in file.tensors
    }
    where = dict(weights.where)
    rows_before = sources[base.embedding].shape[0] if base.embedding else 0
    if base.tied and _treats_unlike(base, adapters):
        one = sources[base.embedding]
        sources[base.head] = Source(one.file, one.name, one.dtype, one.shape, [])
        where[base.head] = where[base.embedding]
    originals = {name: msgspec.structs.replace(source, edits=[]) for name, source in sources.items()}
    for adapter in adapters:
        for tensor, name in adapter.replaced.items():
            _replace(sources, originals[tensor], adapter, tensor, name, resizable=tensor in (base.embedding, base.head))
        for tensor, edits in adapter.edits.items():
            source = sources[tensor]
            check_fits(adapter, tensor, edits, source.shape, str(source.file.path))
            source.edits += edits
    untied = base.tied and base.head in sources
    if untied and _same(sources[base.embedding], sources[base.head]):
        del sources[base.head], where[base.head]
        untied = False
    for source in sources.values():
        source.dtype = dtype if dtype and source.dtype in DTYPES else source.dtype
    _check_dtypes(sources)
    vocab = (rows_before, sources[base.embedding].shape[0]) if base.embedding else None
    if vocab and base.head in sources and sources[base.head].shape[0] != vocab[1]:
        raise ArtifactError(
            f"{base.head} has {sources[base.head].shape[0]} rows, {base.embedding} {vocab[1]}; the adapter lacks one"
        )
    shards = {file: {name: source for name, source in sources.items() if where[name] == file} for file in weights.files}
    return Plan(shards, untied, vocab)


def _treats_unlike(base: Base, adapters: list[Adapter]) -> bool:
    """Whether some adapter changes only one of a tied embedding and head, or each in a way of its own."""
    for adapter in adapters:
        changed = {*adapter.edits, *adapter.replaced}
        # tokens trained by PEFT's token adapter stay tied; whatever else touches only one of the two unties them
        kept = adapter.ties or base.embedding in adapter.token_tensors
        if base.head in changed or (base.embedding in changed and not kept):
            return True
    return False


def _replace(
    sources: dict[str, Source], original: Source, adapter: Adapter, target: str, name: str, *, resizable: bool
) -> None:
    """Take a tensor whole from the adapter, unless it is the base's own, which PEFT saves beside what it edits.

    Raises ConfigError (2) if that would undo what an adapter before it did, ArtifactError (78) if it does not fit.
    """
    source = sources[target]
    taken = Source(adapter.file, name, source.dtype, adapter.file.tensors[name].shape, [])
    if _same(original, taken):
        return
    if source.edits or (source.file, source.name) != (original.file, original.name):
        raise ConfigError(
            f"{adapter.path}: replaces {target}, which an adapter before it changed; merge one of them", USAGE
        )
    resized = len(taken.shape) == len(source.shape) and taken.shape[1:] == source.shape[1:] and resizable
    if taken.shape != source.shape and not resized:
        raise ArtifactError(
            f"{adapter.path}: {target} has shape {list(taken.shape)}, the base's has {list(source.shape)};"
            " pass the base it was trained on with -m",
            MISMATCH,
        )
    sources[target] = taken


def _same(one: Source, other: Source) -> bool:
    """Whether two tensors will have the same bytes, as far as can be told without computing them."""
    a, b = one.file.tensors[one.name], other.file.tensors[other.name]
    if one.edits or other.edits or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if one.file is other.file and one.name == other.name:
        return True
    left, right = bytearray(2**20), bytearray(2**20)
    for offset in range(0, a.num_bytes, 2**20):
        size = min(2**20, a.num_bytes - offset)
        one.file.read_into(one.name, offset, memoryview(left)[:size])
        other.file.read_into(other.name, offset, memoryview(right)[:size])
        if left[:size] != right[:size]:
            return False
    return True


def _check_dtypes(sources: dict[str, Source]) -> None:
    for name, source in sources.items():
        if not source.is_copy and source.dtype not in DTYPES:
            raise ConfigError(
                f"{source.file.path}: {name} is {source.dtype}, which cannot be merged into; use the model"
                " before it was quantized",
                USAGE,
            )
