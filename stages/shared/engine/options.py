"""What can answer, by name: the options of each engine, and how it is opened. Nothing heavy is loaded before that."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from postmill.io.digest import digest_bytes
from postmill.stages.kept import Kept
from postmill.stages.shared.engine.endpoint import Endpoint
from postmill.stages.spec import SAME_BYTES, Choice

if TYPE_CHECKING:
    from postmill.stages.protocol import Input
    from postmill.stages.shared.engine.child import Child

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

ENGINES = Choice(
    group="postmill.engines",
    table={
        "transformers": "postmill.stages.shared.engine.options:Transformers",
        "vllm": "postmill.stages.shared.engine.options:Vllm",
        "command": "postmill.stages.shared.engine.options:Command",
    },
)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is opened with."""

    folders: list[Path]
    """A model's folder, or a base and adapters."""
    digest: str
    """Of the files in these folders."""
    base_digest: str = ""
    """Of those in the first folder."""
    dtype: Dtype
    batch_size: int
    """Requests under way at a time."""
    threads: int

    @classmethod
    def of(cls, items: "list[Input]", *, dtype: Dtype, batch_size: int, threads: int) -> Self:
        """A model, or a base and adapters, as a stage was given them."""
        return cls(
            folders=[item.path for item in items if item.path is not None],
            digest=digest_bytes("\n".join(item.digest for item in items).encode()),
            base_digest=items[0].digest,
            dtype=dtype,
            batch_size=batch_size,
            threads=threads,
        )


class Transformers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="transformers"):
    """Our own engine, on models of transformers, in this process."""

    def open(self, wanted: Wanted) -> AbstractContextManager[Any]:
        """Raises ArtifactError and StageError as loading a model does."""
        from postmill.stages.shared.engine.local import LocalEngine

        return nullcontext(
            LocalEngine(wanted.folders, dtype=wanted.dtype, batch_size=wanted.batch_size, threads=wanted.threads)
        )


class Vllm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="vllm"):
    """vLLM's server, started for this run on a port of this machine only, and ended with it."""

    engine_python: Annotated[str, SAME_BYTES] = ""
    """The Python that has vLLM, as ~/vllm/bin/python. Default: the one that runs this."""
    engine_arguments: list[str] = []
    """Words to add to the server's command line; may be given several times."""
    start_timeout_s: Annotated[float, Meta(gt=0), SAME_BYTES] = 600.0
    """Longest wait until it answers, in seconds."""

    def open(self, wanted: Wanted) -> AbstractContextManager[Any]:
        """Raises StageError (69) where it does not start, ConfigError (2) for several adapters."""
        from postmill.stages.shared.engine.child import running

        return running(self.start(wanted))

    def start(self, wanted: Wanted) -> "Child":
        """The server, which outlives the run. Raises what `open` raises."""
        from postmill.stages.shared.engine.child import start_vllm

        return start_vllm(self, wanted)


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="command"):
    """Any server that speaks OpenAI's API, started for this run by a command line, and ended with it."""

    engine_command: str
    """Its command line, with {port} and {model}; split as a shell would, though no shell runs it. With an adapter it
    has {adapter} too, served by the name policy: postmill serve {model} --adapter policy={adapter} --port {port}.
    With --adapter-dir . --admin-key-file {key_file} as well, a loop puts new adapters into the server that it has."""
    start_timeout_s: Annotated[float, Meta(gt=0), SAME_BYTES] = 600.0
    """Longest wait until it answers, in seconds."""

    def __post_init__(self) -> None:
        if "{port}" not in self.engine_command:
            raise ValueError("engine_command has no {port}: the server has to listen where it will be asked")

    def open(self, wanted: Wanted) -> AbstractContextManager[Any]:
        """Raises StageError (69) where it does not start, ConfigError (2) where it has no place for the adapter."""
        from postmill.stages.shared.engine.child import running

        return running(self.start(wanted))

    def start(self, wanted: Wanted) -> "Child":
        """The server, which outlives the run. Raises what `open` raises."""
        from postmill.stages.shared.engine.child import start_command

        return start_command(self, wanted)


def check_engine(engine: Any, endpoint: Endpoint) -> None:
    """Raises ValueError for an engine beside a server that runs already."""
    if endpoint.url and not isinstance(engine, Transformers):
        raise ValueError("url is a server that runs already, engine one to start; give one of them")


def open_engine(
    engine: Any, endpoint: Endpoint, wanted: Wanted, kept: Kept | None = None
) -> AbstractContextManager[Any]:
    """The engine, until the block ends: the server at `endpoint` if that has a URL. Raises what opening it raises.

    kept: where an engine is held between runs, so that an adapter of the same base needs no other one.
    """
    if endpoint.url:
        from postmill.stages.shared.engine.url import UrlEngine

        return nullcontext(UrlEngine(endpoint, concurrency=wanted.batch_size))
    if kept is not None and isinstance(engine, Transformers):
        return _held(engine, wanted, kept)
    if kept is not None and isinstance(engine, (Vllm, Command)):
        return _held_server(engine, wanted, kept)
    opened: AbstractContextManager[Any] = engine.open(wanted)
    return opened


@contextmanager
def _held(engine: Transformers, wanted: Wanted, kept: Kept) -> Iterator[Any]:
    """The engine of the run before, with the adapter that is wanted now; or a new one."""
    made_from = (wanted.base_digest, wanted.dtype, wanted.batch_size, wanted.threads)
    found = kept.take("engine", made_from)
    if found is None or not found.swap(wanted.folders):
        found = None  # its memory goes before another is loaded
        with engine.open(wanted) as found:
            pass
    yield found
    kept.keep("engine", made_from, found)


@contextmanager
def _held_server(options: Vllm | Command, wanted: Wanted, kept: Kept) -> Iterator[Any]:
    """The same of a server: it goes on where it takes the adapter that is wanted now, and else another is started."""
    from postmill.stages.shared.engine.child import running

    made_from = (options, wanted.base_digest, wanted.dtype, wanted.batch_size, wanted.threads)
    child: Child | None = kept.take("engine", made_from)
    if child is not None and not child.swap(wanted):
        child.close()
        child = None
    child = child or options.start(wanted)
    with running(child, keep=True) as engine:
        yield engine
    kept.keep("engine", made_from, child)
