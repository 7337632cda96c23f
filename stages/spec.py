"""The cheap half of the stage protocol: what the command line needs to know without loading anything heavy."""

import enum
from collections.abc import Callable
from typing import Any

import msgspec


class Effect(enum.Enum):
    """What another value of an option does to a run that has begun; part of the option's annotation."""

    SAME_BYTES = "same bytes"
    """The result does not change."""
    LAST_BITS = "last bits may differ"
    """The same computation, rounded in another order: the run may go on."""
    ANOTHER_RUN = "another run"
    """Another result. What an annotation without any of these means."""


SAME_BYTES, LAST_BITS = Effect.SAME_BYTES, Effect.LAST_BITS


class Choice(msgspec.Struct, frozen=True):
    """An option that is one of several structs, chosen by name; part of the option's annotation.

    `--tuner lora` chooses, `--lora.rank 8` is an option of what was chosen. Each struct has its name as `tag`.
    """

    group: str
    """Entry points that add names: `postmill.tuners`."""
    table: dict[str, str]
    """Name -> `module:struct`. Importing the module must not load torch."""
    files: str = ""
    """The name that `file.py:function` stands for, and"""
    files_port: str = ""
    """the port that gets the file."""


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """One way in. `kinds` are artifact kinds, or one of the special kinds below.

    `dataset`: a reference that `resolver` turns into inputs; `model`, `adapter`: a folder in Hugging Face or PEFT
    layout, ours or not, digested whole; `tokenizer`: a model folder of which only tokenizer and template files count;
    `file`: any file.
    """

    kinds: tuple[str, ...]
    help: str
    flag: str = ""
    """`-m` or `--valid`; a port without a flag is positional."""
    many: bool = False
    named: bool = False
    """Whether a reference is NAME=PATH; the inputs are then of the port `PORT.NAME`."""
    required: bool = True
    stream: bool = False
    """Whether `-` reads it from stdin."""
    resolver: str = ""
    """`module:function` from a reference to a list of `protocol.Input`; only for kind `dataset`."""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A stage, as its `config.py` declares it."""

    name: str
    version: int
    """Raise when the same config and inputs would give other bytes."""
    config: type[Any]
    inputs: dict[str, Port]
    output: str | Callable[[Any], str]
    """Kind of the artifact it makes, or a function from the config to it; empty for a service, which makes none."""
    stream: bool = False
    """Whether the output can be a stream on stdout."""
    example: str = ""
    implied: str = ""
    """`module:function` from inputs found to all inputs: for one that another input names, as an adapter its base."""
    first: tuple[str, ...] = ()
    """Paths of the options that people need first: what `--help` shows before `--help all`. Empty: all of them."""
    package: str = ""
    """Package that holds `run.py`; unset for stages of ours, whose package follows from their name."""
    ranks: bool = False
    """Whether several processes of a launcher (torchrun, accelerate) may run it together; rank 0 writes."""

    shards: bool = False
    """Whether several processes may each make a part with `--shard I/N`, which the run without it commits."""

    @property
    def is_service(self) -> bool:
        """Whether it runs until it is told to end, and makes no artifact."""
        return self.output == ""

    def kind(self, config: Any) -> str:
        """Kind of the artifact that `config` makes."""
        return self.output if isinstance(self.output, str) else self.output(config)
