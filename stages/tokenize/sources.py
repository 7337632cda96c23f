"""From dataset references to chunks of JSON Lines: everything the encoder needs to know of where rows come from.

    data = open_sources(["chats.jsonl#1000", "hf:owner/name:subset"], seed=42)
    for chunk in data.chunks():
        encode(chunk.data, data.sources[chunk.source].name, ...)

Chunks are about `chunk_bytes` long and end behind a newline at places that depend on the file alone. They come in order
and one at a time, so memory does not grow with the input. A dataset with a count, and every one of a mix, is read once
more beforehand to count its records.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from postmill._native import CHUNK_BYTES, MAX_LINE_BYTES, count_records, record_hashes
from postmill.io.digest import digest_file, digest_json
from postmill.io.errors import BAD_DATA, NO_INPUT, ArtifactError, ConfigError
from postmill.io.hub import CARD, fetch
from postmill.io.nearby import nearby
from postmill.stages.progress import fetch_progress
from postmill.stages.protocol import Input
from postmill.stages.tokenize.files import FORMATS, STATE, Kind, choose_files, kind_of, saved_files
from postmill.stages.tokenize.readers import read_lines
from postmill.stages.tokenize.reading import Reading
from postmill.stages.tokenize.references import Reference, parse_reference
from postmill.stages.tokenize.selection import Stop, held_out, mix_counts, resample, times_read
from postmill.stages.tokenize.sniff import kind_of_file

Side = Literal["all", "train", "validation"]
STDIN = "-"
"""Reference and source name of standard input."""


class Source(msgspec.Struct, frozen=True):
    """One file of a dataset."""

    name: str
    """What messages, ledger and manifest call it; the same wherever the dataset lies."""
    path: Path
    kind: Kind
    dataset: int
    """Index of its reference."""


class Dataset(msgspec.Struct, frozen=True):
    """A reference and the files it stands for."""

    reference: Reference
    source: str
    """The commit of a hub, `hf:owner/name@commit`, or empty."""
    files: dict[str, Path]
    """By name, in the order they are read."""
    kinds: dict[str, Kind]
    """How to read each."""

    def digest(self) -> str:
        """Of everything about the dataset that can change a row: names, bytes, count. Not where it lies."""
        contents = {name: digest_file(path) for name, path in self.files.items()}
        return digest_json({"files": contents, "count": self.reference.count})


class Chunk(NamedTuple):
    """Whole lines of one source, and which of their records to take."""

    source: int
    first_line: int
    """Number of the first line, from 1. For formats that are not lines, of the first record."""
    first_record: int
    """Number of the first record in the source, from 0; blank lines are no records."""
    data: bytes
    copy: int
    """Which time this record is read: 0, or more for datasets that repeat."""
    selection: list[int] | None
    """Ascending record numbers of the source, or all."""

    @property
    def place(self) -> tuple[int, int, int, int, list[int] | None]:
        """Where it lies, as the core is told."""
        return self.source, self.first_line, self.first_record, self.copy, self.selection


@functools.cache  # the runner resolves inputs for their digests, and the stage again to read them
def resolve(text: str) -> Dataset:
    """Find the files of a reference; download them if they are on a hub. Raises ConfigError and ArtifactError."""
    reference = parse_reference(text)
    if reference.repository:
        fetched = fetch(
            reference.repository,
            lambda names, card: choose_files(names, card, reference.subsets, text),
            fetch_progress(str(reference.repository)),
        )
        short = fetched.source.removesuffix(fetched.revision) + fetched.revision[:12]
        files = {f"{short}/{name}": path for name, path in sorted(fetched.files.items())}
        return _dataset(reference, fetched.source, files)
    if reference.place == STDIN:
        return _from_stdin(reference)
    path = Path(reference.place)
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        card = (path / CARD).read_text("utf-8", errors="replace") if CARD in names else ""
        states = {name: (path / name).read_bytes() for name in names if PurePosixPath(name).name == STATE}
        chosen = choose_files(saved_files(names, states, text), card, reference.subsets, text)
        return _dataset(reference, "", {f"{path.name or '.'}/{name}": path / name for name in chosen})
    if not path.is_file():
        hint = "; for a hub write hf:owner/name or ms:owner/name" if text.count("/") == 1 else ""
        raise ArtifactError(f"{text}: no such file or folder{nearby(path) or hint}", NO_INPUT)
    if reference.subsets:
        raise ConfigError(f"dataset {text}: a file has no subsets; drop :{'/'.join(reference.subsets)}")
    return _dataset(reference, "", {path.name: path})


def _dataset(reference: Reference, source: str, files: dict[str, Path]) -> Dataset:
    """The dataset of `files` by name, each file's kind told by its bytes. Raises ArtifactError (65, 77)."""
    kinds = {}
    for name, path in files.items():
        kind = kind_of_file(path, name, kind_of(name))
        if kind is None:
            known = " ".join(sorted(FORMATS))
            ending = PurePosixPath(name).suffix
            raise ArtifactError(
                f"{name}: unknown file format {ending!r}; known are {known} and .gz, .zst, .bz2 or .xz of text",
                BAD_DATA,
            )
        kinds[name] = kind
    return Dataset(reference, source, files, kinds)


def resolve_inputs(port: str, reference: str) -> list[Input]:
    """The runner's resolver: one input for a reference, its name the reference itself."""
    dataset = resolve(reference)
    lies_here = dataset.reference.place not in ("", STDIN)
    path = Path(dataset.reference.place) if lies_here else None
    return [Input(port, "dataset", dataset.digest(), reference, path, source=dataset.source)]


def _from_stdin(reference: Reference) -> Dataset:
    from postmill.stages.tokenize.stdin import Rows, open_stdin

    found = open_stdin()
    if reference.subsets or not isinstance(found, Rows):
        raise ConfigError(f"dataset {reference.text}: only rows have a #count, and stdin has no subsets")
    return Dataset(reference, "", {STDIN: found.path}, {STDIN: found.kind})


class Sources:
    """The datasets of one run. Make it with `open_sources`."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        seed: int,
        mix: Sequence[float],
        stop: Stop,
        validation: float,
        side: Side,
        chunk_bytes: int,
        max_line_bytes: int,
        reading: Reading,
    ) -> None:
        self.datasets = list(datasets)
        self.reading = reading
        self.sources = [
            Source(name, path, dataset.kinds[name], index)
            for index, dataset in enumerate(datasets)
            for name, path in dataset.files.items()
        ]
        self._seed, self._validation, self._side = seed, validation, side
        self._chunk_bytes, self._max_line_bytes = chunk_bytes, max_line_bytes
        self._records = [0] * len(self.sources)
        """Records of each source, where a plan had to know."""
        self._times = self._plan(mix, stop)
        self._sizes = [source.path.stat().st_size for source in self.sources]
        times_read = [self._copies(source.dataset) for source in self.sources]
        self._total_bytes = sum(n * size for n, size in zip(times_read, self._sizes, strict=True))
        self._done_bytes, self._now = 0, 0

    def _plan(self, mix: Sequence[float], stop: Stop) -> dict[int, npt.NDArray[np.uint32]]:
        """How often each record is read, for the datasets where it is not once."""
        times: dict[int, npt.NDArray[np.uint32]] = {}
        for index, dataset in enumerate(self.datasets):
            count = dataset.reference.count
            if count is not None or mix:
                times[index] = times_read(self._count(index), count, self._seed, dataset.reference.text)
        if mix:
            wanted = mix_counts([int(t.sum()) for t in times.values()], mix, stop)
            times = {index: resample(t, wanted[index], self._seed) for index, t in times.items()}
        return times

    def _count(self, dataset: int) -> int:
        """Records of a dataset, and of each of its sources."""
        for index, source in enumerate(self.sources):
            if source.dataset == dataset:
                self._records[index] = sum(records for _, _, _, records in self._cut(source))
        return sum(self._records[i] for i, source in enumerate(self.sources) if source.dataset == dataset)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, in order: datasets as given, each as often as it repeats, its files by name."""
        for dataset in range(len(self.datasets)):
            for copy in range(self._copies(dataset)):
                yield from self._pass(dataset, self._times.get(dataset), copy)

    def _copies(self, dataset: int) -> int:
        """How often a dataset is gone through."""
        times = self._times.get(dataset)
        return 1 if times is None else int(times.max(initial=0))

    @property
    def share(self) -> float:
        """How much of all files has been read, 0 to 1, by their bytes on disk."""
        return min(1.0, (self._done_bytes + self.reading.at * self._now) / max(1, self._total_bytes))

    def _pass(self, dataset: int, times: npt.NDArray[np.uint32] | None, copy: int) -> Iterator[Chunk]:
        start = 0
        for index, source in enumerate(self.sources):
            if source.dataset != dataset:
                continue
            self._done_bytes, self._now, self.reading.at = self._done_bytes + self._now, self._sizes[index], 0.0
            mine = None if times is None else times[start : start + self._records[index]]
            start += self._records[index]
            if mine is not None and not (mine > copy).any():
                continue
            first_record = 0
            for first_line, data, _, records in self._cut(source):
                wanted = None if mine is None else mine[first_record : first_record + records] > copy
                wanted = self._on_side(data, first_line, wanted)
                if wanted is None or wanted.all():
                    yield Chunk(index, first_line, first_record, data, copy, None)
                elif wanted.any():
                    numbers = (np.flatnonzero(wanted) + first_record).tolist()
                    yield Chunk(index, first_line, first_record, data, copy, numbers)
                first_record += records

    def _on_side(
        self, data: bytes, first_line: int, wanted: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.bool_] | None:
        """`wanted` without the records of the other side of the split."""
        if self._side == "all" or self._validation == 0:
            return wanted
        mask = held_out(record_hashes(data, first_line == 1, self._seed), self._validation)
        if self._side == "train":
            mask = ~mask
        return mask if wanted is None else mask & wanted

    def _cut(self, source: Source) -> Iterator[tuple[int, bytes, int, int]]:
        """First line, bytes, lines and records of each chunk of a source."""
        first_line = 1
        for data in cut(
            read_lines(source.path, source.kind, source.name, self.reading), self._chunk_bytes, self._max_line_bytes
        ):
            if not data:
                raise ArtifactError(
                    f"{source.name}:{first_line}: the line is longer than {self._max_line_bytes} bytes; raise "
                    "--max-line-bytes or split the row",
                    BAD_DATA,
                )
            lines, records = count_records(data, first_line == 1)
            yield first_line, data, lines, records
            first_line += lines


def cut(blocks: Iterator[bytes], chunk_bytes: int, max_line_bytes: int) -> Iterator[bytes]:
    """The chunks of a stream, the same however it is divided into blocks; see `postmill_core::lines`.

    An empty chunk says that a line longer than `max_line_bytes` follows; nothing comes after it.
    """
    pending, offset = bytearray(), 0
    for block in blocks:
        pending += block
        while True:
            target = (offset // chunk_bytes + 1) * chunk_bytes - 1 - offset
            end = pending.find(b"\n", target) + 1 if target < len(pending) else 0
            if not end:
                break
            yield bytes(memoryview(pending)[:end])
            del pending[:end]
            offset += end
        if len(pending) > max_line_bytes + chunk_bytes:
            last = pending.rfind(b"\n") + 1
            if last:
                yield bytes(memoryview(pending)[:last])
            yield b""
            return
    if pending:
        yield bytes(pending)


def open_sources(
    references: Sequence[str],
    *,
    seed: int = 42,
    mix: Sequence[float] = (),
    stop: Stop = "first_exhausted",
    validation: float = 0.0,
    side: Side = "all",
    chunk_bytes: int = CHUNK_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
    reading: Reading | None = None,
) -> Sources:
    """Resolve `references` and plan what is read of them.

    mix: shares of the datasets, one weight each, or empty; `stop` says whether the smallest or the largest dataset, for
    its share, sets the total. validation: share of rows held out, 0 <= validation < 1; `side`: which rows to give.
    reading: how files are read.
    Raises ConfigError and ArtifactError.
    """
    if not 0 <= validation < 1:
        raise ConfigError(f"validation: {validation:g} is not a share of the rows; expected at least 0 and less than 1")
    datasets = [resolve(reference) for reference in references]
    if sum(dataset.reference.place == STDIN for dataset in datasets) > 1:
        raise ConfigError("-: stdin can be read once; name it once")
    return Sources(
        datasets,
        seed=seed,
        mix=mix,
        stop=stop,
        validation=validation,
        side=side,
        chunk_bytes=chunk_bytes,
        max_line_bytes=max_line_bytes,
        reading=reading or Reading(),
    )
