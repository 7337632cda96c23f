"""What a stage is: a name, a version, a config, ports for its inputs, and the kind of artifact it makes.

A stage is a folder: `config.py` holds its config struct and its `STAGE`, costs milliseconds to import and loads no
heavy library; `run.py` holds `run(cfg, inputs, out) -> Result`. The runner joins the two.
"""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa

from postmill.io.errors import STOPPED, StageError
from postmill.io.ledger import Ledger
from postmill.io.manifest import Artifact, InputEntry, Manifest
from postmill.io.table import StreamHeader, StreamReader, TableWriter
from postmill.stages.kept import Kept
from postmill.stages.options import changes
from postmill.stages.spec import Stage


class Input(msgspec.Struct, frozen=True):
    """One input, found and digested: from stdin (`stream`), an artifact (`artifact`), or anything on disk (`path`)."""

    port: str
    kind: str
    digest: str
    name: str
    path: Path | None = None
    artifact: Artifact | None = None
    stream: StreamReader | None = None
    source: str = ""
    """The commit of a hub it was fetched from, `hf:owner/name@commit`; empty for what lay here."""

    def entry(self) -> InputEntry:
        return InputEntry(self.port, self.kind, self.digest, self.source)


Inputs = dict[str, list[Input]]
"""Inputs by port, in the order given."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `run` reports for the manifest. Nothing in it may differ between two equal runs: times go to `seconds`."""

    metrics: dict[str, Any] = {}
    digests: dict[str, str] = {}
    versions: dict[str, str] = {}
    seconds: dict[str, float] = {}


class Stop:
    """A request to stop, from SIGTERM or SIGINT. A stage that can save its state looks at it between units of work."""

    def __init__(self) -> None:
        self.signal = 0
        self.graceful = False
        """Set by a stage that will look at `requested`; otherwise a signal ends the work at once."""

    @property
    def requested(self) -> bool:
        return self.signal != 0

    def stopped(self, saved: str) -> StageError:
        """The error to raise once what is promised has been saved."""
        name = signal.Signals(self.signal).name
        return StageError(f"stopped by {name}; {saved}; run the same command again to go on", STOPPED)


class Out:
    """Where a stage writes: `dir` is the artifact being made (none for a stream), `checkpoints` outlives a stop."""

    def __init__(self, stage: Stage, key: str, target: Path | None, sink: BinaryIO | None, folder: Path | None) -> None:
        self.stage, self.key, self.target = stage, key, target
        self.rank = 0
        """Which process of a launcher this is; only rank 0 has a `dir`."""
        self.shard: tuple[int, int] | None = None
        """Part I of N, from 1, of work that several processes share: it goes beside the output, and has no `dir`."""
        self.sink, self._dir = sink, folder
        self.ledger = Ledger(folder / "ledger.arrow" if folder else None)
        self.threads = 1
        self.kept: Kept | None = None
        """What this process holds between runs of stages; None where nothing is kept."""
        self.force = False
        self.stop = Stop()
        self.inputs: list[InputEntry] = []
        self.config: dict[str, Any] = {}
        self.kind = stage.output if isinstance(stage.output, str) else ""
        """Kind of the artifact; the runner sets it where the config decides."""
        self.stream_writer: TableWriter | None = None
        self._tables: list[TableWriter] = []
        self.after_commit: Callable[[], None] | None = None
        """Called once the artifact is in place: to remove what it makes needless."""

    @property
    def dir(self) -> Path:
        """The folder to put files in."""
        assert self._dir is not None, f"{self.stage.name} writes a stream"
        return self._dir

    @property
    def checkpoints(self) -> Path:
        """`OUTPUT.checkpoints`: what must survive a stop, checkpoints and journals. Not made until used."""
        assert self.target is not None, f"{self.stage.name} writes a stream"
        return self.target.parent / f"{self.target.name}.checkpoints"

    def forget(self, *names: str) -> None:
        """Remove these files and folders of `checkpoints`, which the artifact makes needless, and that when it is
        empty."""
        for name in names:
            path = self.checkpoints / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            self.checkpoints.rmdir()

    def table(self, name: str, schema: pa.Schema) -> TableWriter:
        """A table of the artifact, or the stream itself when the output is one."""
        if self.sink is None:
            self._tables.append(TableWriter(self.dir / name, schema))
            return self._tables[-1]
        header = StreamHeader(kind=self.kind, stage=self.stage.name, key=self.key)
        self.stream_writer = TableWriter(self.sink, schema, header)
        return self.stream_writer

    def digests(self) -> dict[Path, str]:
        """Of the tables written and closed."""
        return {table.path: table.digest for table in self._tables if table.path and table.digest}


def differences(stage: Stage, made: Manifest, config: dict[str, Any], inputs: list[InputEntry]) -> str:
    """In which stage, options, inputs and version the work that is asked for differs from what made an artifact."""
    if made.stage != stage.name:
        return f"{made.stage} made it, this is {stage.name}"
    old, new = _by_port(made.inputs), _by_port(inputs)
    reasons = [f"input {port} changed" for port in sorted(old.keys() | new.keys()) if old.get(port) != new.get(port)]
    reasons += changes(stage.config, made.config, config)
    if made.stage_version != stage.version:
        reasons.append(f"stage version was {made.stage_version}, is {stage.version}")
    return ", ".join(reasons) or "its key differs"


def _by_port(inputs: list[InputEntry]) -> dict[str, list[str]]:
    ports: dict[str, list[str]] = {}
    for entry in inputs:
        ports.setdefault(entry.port, []).append(entry.digest)
    return ports
