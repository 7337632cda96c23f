"""Which tensor of the merged model comes from where, decided from headers alone, before a byte of weights is written.

The shards of the result are those of the base. Tied embeddings are the delicate part: an adapter on the embedding alone
leaves the head as it was (as PEFT computes it), so the two are no longer equal and the head gets a tensor of its own.
"""

from typing import Any

import msgspec

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.safetensors_file import SafetensorsFile, Weights
from postmill.stages.merge.adapter import Adapter, check_fits
from postmill.stages.merge.arithmetic import DTYPES, Edit, SetRows

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


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


def make_plan(base: Weights, adapters: list[Adapter], config: dict[str, Any], dtype: str | None = None) -> Plan:
    """`dtype` (BF16, ...) is what weights are saved in; None keeps the base's.

    Raises ArtifactError (78) if an adapter does not fit the base, ConfigError (2) if it cannot be merged into it."""
    sources = {
        name: Source(base.file_of(name), name, base.entry(name).dtype, base.entry(name).shape, [])
        for file in base.files.values()
        for name in file.tensors
    }
    where = dict(base.where)
    embedding = next((name for name in sources if name.endswith(_EMBEDDINGS)), None)
    head = next((name for name in sources if name.endswith(_HEADS)), None)
    rows_before = sources[embedding].shape[0] if embedding else 0
    tied = embedding if head is None and _is_tied(config) else None
    tied_head = _head_name(adapters) if tied else None
    if tied and tied_head:
        _untie(tied, tied_head, sources, where, adapters)
    originals = {name: msgspec.structs.replace(source, edits=[]) for name, source in sources.items()}
    for adapter in adapters:
        for tensor, name in adapter.replaced.items():
            target = _target(sources, tensor, adapter)
            _replace(sources, originals[target], adapter, target, name)
        for tensor, edits in adapter.edits.items():
            source = sources[_target(sources, tensor, adapter)]
            for edit in edits:
                check_fits(adapter, tensor, edit, source.shape, str(source.file.path))
            source.edits += edits
    untied = bool(tied and tied_head in sources)
    if tied and tied_head and untied and _same(sources[tied], sources[tied_head]):
        del sources[tied_head], where[tied_head]
        untied = False
    for source in sources.values():
        source.dtype = dtype if dtype and source.dtype in DTYPES else source.dtype
    _check_dtypes(sources)
    vocab = (rows_before, sources[embedding].shape[0]) if embedding else None
    if vocab and head and sources[head].shape[0] != vocab[1]:
        raise ArtifactError(f"{head} has {sources[head].shape[0]} rows, {embedding} {vocab[1]}; the adapter lacks one")
    shards = {file: {name: source for name, source in sources.items() if where[name] == file} for file in base.files}
    return Plan(shards, untied, vocab)


def _is_tied(config: dict[str, Any]) -> bool:
    # transformers ties unless told otherwise, and text models inside others carry their own word on it
    inner = config.get("text_config", {})
    return bool(config.get("tie_word_embeddings", inner.get("tie_word_embeddings", True)))


def _head_name(adapters: list[Adapter]) -> str:
    named = [t for adapter in adapters for t in (*adapter.edits, *adapter.replaced) if t.endswith(_HEADS)]
    return named[0] if named else _HEADS[0]


def _untie(
    embedding: str, head: str, sources: dict[str, Source], where: dict[str, str], adapters: list[Adapter]
) -> None:
    """Give the head a tensor of its own, if some adapter treats embedding and head unlike."""
    for adapter in adapters:
        if adapter.ties:  # what PEFT stores for the head is what it stores for the embedding
            adapter.edits.pop(head, None)
            adapter.replaced.pop(head, None)
    for adapter in adapters:
        changed = {*adapter.edits, *adapter.replaced}
        edits = adapter.edits.get(embedding, [])
        # tokens trained by PEFT's token adapter stay tied; whatever else touches only one of the two unties them
        tokens_only = bool(edits) and all(isinstance(edit, SetRows) for edit in edits)
        if head in changed or (embedding in changed and not adapter.ties and not tokens_only):
            one = sources[embedding]
            sources[head] = Source(one.file, one.name, one.dtype, one.shape, [])
            where[head] = where[embedding]
            return


def _target(sources: dict[str, Source], tensor: str, adapter: Adapter) -> str:
    """The base's name of a tensor that an adapter names: the same, or with or without `model.` in front."""
    for name in (tensor, f"model.{tensor}", tensor.removeprefix("model.")):
        if name in sources:
            return name
    raise ArtifactError(
        f"{adapter.path}: changes {tensor}, which the base does not have; pass the base it was trained on with -m",
        MISMATCH,
    )


def _replace(sources: dict[str, Source], original: Source, adapter: Adapter, target: str, name: str) -> None:
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
    resized = (
        len(taken.shape) == len(source.shape)
        and taken.shape[1:] == source.shape[1:]
        and target.endswith((*_EMBEDDINGS, *_HEADS))
    )
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
