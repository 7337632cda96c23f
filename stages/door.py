"""The way in for notebooks and other people's pipelines: run a stage as a function, open what it made.

    tokens = postmill.stage("tokenize", "chats.jsonl", model="base/", output="tokens/", loss_scale="last_round")
    packed = postmill.stage("pack", tokens, output="packed/", row_tokens=2048)
    packed.dataset()  # a torch Dataset of bins
    postmill.open("tokens/").polars()

A stage does here what it does as a command: same keys, same digests, up to date if nothing changed.
"""

import contextlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from postmill.io.errors import MISMATCH, ArtifactError, ConfigError
from postmill.io.kinds import find_kind
from postmill.io.manifest import Artifact, Manifest, load_artifact
from postmill.io.packed import PackedReader, TokenRows, token_tables
from postmill.stages.options import make
from postmill.stages.spec import Stage
from postmill.stages.table import STAGES
from postmill.stages.tables import added, closest

if TYPE_CHECKING:
    import datasets
    import polars

IGNORED = -100
"""The label of a token that is not learned, as transformers has it."""


class Opened:
    """An artifact on disk, as other libraries like it. Nothing is read before it is asked for."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.artifact.path

    @property
    def kind(self) -> str:
        """What it is: tokens, packed, adapter, ..."""
        return self.artifact.manifest.kind

    @property
    def digest(self) -> str:
        """The digest of its manifest: equal work has an equal one."""
        return self.artifact.digest

    @property
    def manifest(self) -> Manifest:
        """Stage, options, inputs, files, counts, metrics."""
        return self.artifact.manifest

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<postmill {self.kind} {self.path} {self.digest[:19]}>"

    def arrow(self, table: str = "") -> pa.Table:
        """A table of it, memory-mapped and checked: the only one, or the one of that name ("bins.arrow").

        Raises ArtifactError: (78) for a kind without tables, (65) for damage; ConfigError (2) for a name it lacks.
        """
        from postmill.io.table import TableReader

        names = list(find_kind(self.kind).tables)
        if not names:
            raise ArtifactError(f"{self.path}: {self.kind} has no tables; read its files with safetensors", MISMATCH)
        name = table or names[0]
        if name not in names:
            raise ConfigError(f"{self.path}: no table {name}{closest(name, names)}; it has {', '.join(names)}")
        reader = TableReader(self.artifact.file(name))
        return pa.Table.from_batches(list(reader), schema=reader.schema)

    def polars(self, table: str = "") -> "polars.DataFrame":
        """`arrow` as a Polars frame, without a copy."""
        import polars

        frame = polars.from_arrow(self.arrow(table))
        assert isinstance(frame, polars.DataFrame)
        return frame

    def dataset(self) -> "Rows | Bins":
        """A torch Dataset: the rows of tokens, or the bins of a packed artifact. Raises ArtifactError (78)."""
        if self.kind == "packed":
            return Bins(self.path)
        if self.kind in ("tokens", "rollouts"):
            return Rows(self.path)
        raise ArtifactError(f"{self.path}: {self.kind} has no tokens; open tokens or a packed artifact", MISMATCH)

    def datasets(self) -> "datasets.Dataset":
        """A `datasets.Dataset` of `input_ids` and `labels`, tokenized already: what TRL's trainers take.

        Of a packed artifact a row is a bin, with the lengths of its rows as `seq_lengths`.
        """
        import datasets

        dataset = self.dataset()
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        if isinstance(dataset, Bins):
            columns["seq_lengths"] = []
        for item in map(dataset.numpy, range(len(dataset))):
            columns["input_ids"].append(item["input_ids"])
            columns["labels"].append(item["labels"])
            if "cu_seqlens" in item:
                columns["seq_lengths"].append(np.diff(item["cu_seqlens"]))
        return datasets.Dataset(pa.table({name: pa.array(values) for name, values in columns.items()}))


def _labels(ids: "np.ndarray[Any, Any]", weights: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    return np.where(weights != 0, ids, IGNORED).astype(np.int64)


class _Dataset:
    """What both forms share: an item as torch tensors, and copies for the workers of a DataLoader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def numpy(self, index: int) -> dict[str, Any]:
        """An item as NumPy arrays."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(value.copy()) for name, value in self.numpy(index).items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)


class Rows(_Dataset):
    """Rows of tokens: `input_ids`, `labels` (-100 where nothing is learned), `weights`, each [T]."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rows = TokenRows(token_tables(load_artifact(path)))

    def __len__(self) -> int:
        return len(self._rows)

    def numpy(self, index: int) -> dict[str, Any]:
        """Row `index`. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self._rows.lay(np.array([index]))
        ids = row.input_ids.astype(np.int64)
        return {"input_ids": ids, "labels": _labels(ids, row.weights), "weights": row.weights}


class Bins(_Dataset):
    """Bins: rows laid end to end, with `position_ids` from 0 in each and their borders as `cu_seqlens`.

    The first label of each row is -100, so that nothing is learned across a border. Bins come in the order of
    training: `set_epoch` says of which epoch.
    """

    def __init__(self, path: Path, epoch: int = 0) -> None:
        super().__init__(path)
        self.reader = PackedReader(path)
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch, counted from 0."""
        self.epoch = epoch
        self._order = self.reader.order(epoch)

    def __len__(self) -> int:
        return len(self.reader)

    def numpy(self, index: int) -> dict[str, Any]:
        """Bin `index` in the order of the epoch. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        bin_columns = self.reader.bin(int(self._order[index]))
        ids = bin_columns.input_ids.astype(np.int64)
        return {
            "input_ids": ids,
            "labels": _labels(ids, bin_columns.weights),
            "position_ids": bin_columns.position_ids.astype(np.int64),
            "weights": bin_columns.weights,
            "cu_seqlens": bin_columns.cu_seqlens,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.epoch)


def open_artifact(path: Any) -> Opened:
    """The artifact at `path`. Raises ArtifactError (66) if there is none, (65) if it is damaged."""
    return Opened(load_artifact(Path(path)))


def run_as_function(
    name: str, *inputs: Any, output: Any, replace: bool, force: bool, quiet: bool, given: dict[str, Any]
) -> Opened:
    """See `postmill.stage`."""
    from postmill.stages.progress import Progress
    from postmill.stages.runner import Options, run_stage

    declared = _stage(name)
    ports, options = _split(declared, given)
    _place(declared, list(inputs), ports)
    try:
        config = make(declared.config, **options)
    except ValueError as error:
        if isinstance(error, (ConfigError, ArtifactError)):
            raise
        raise ConfigError(f"{name}: {error}") from error
    how = Options(replace=replace, force=force)
    with contextlib.ExitStack() as stack:
        stack.enter_context(Progress.install(quiet=quiet))
        outcome = run_stage(declared, config, ports, Path(output), how)
    assert outcome.path is not None
    return open_artifact(outcome.path)


def _stage(name: str) -> Stage:
    if name in STAGES:
        declared: Stage = importlib.import_module(f"postmill.stages.{name}.config").STAGE
        return declared
    reference = added("postmill.stages").get(name)
    if reference is None:
        raise ConfigError(f"{name}: no such stage{closest(name, list(STAGES))}; there are {', '.join(STAGES)}")
    module, _, attribute = reference.partition(":")
    stage: Stage = getattr(importlib.import_module(module), attribute)
    return stage


def _split(declared: Stage, given: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Named arguments as inputs by port, and options."""
    ports: dict[str, list[str]] = {}
    options: dict[str, Any] = {}
    for word, value in given.items():
        if word in declared.inputs:
            ports[word] = _texts(value)
        else:
            options[word] = value
    return ports, options


def _texts(value: Any) -> list[str]:
    """References: a path, a name on a hub, an opened artifact, a list of them, or a dict of them for labels."""
    if isinstance(value, dict):
        return [f"{label}={text}" for label, item in value.items() for text in _texts(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return [str(value.path) if isinstance(value, Opened) else str(value)]


def _place(declared: Stage, inputs: list[Any], ports: dict[str, list[str]]) -> None:
    """Positional arguments, as words of a command: one a port, the rest to the one that takes many."""
    words = [text for item in inputs for text in _texts(item)]
    for name, port in declared.inputs.items():
        if port.flag or name in ports or not words:
            continue
        ports[name] = words if port.many else words[:1]
        words = [] if port.many else words[1:]
    if words:
        raise ConfigError(f"{declared.name}: {words[0]}: one input too many")
