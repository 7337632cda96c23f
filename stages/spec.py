"""The cheap half of the stage protocol: what the command line needs to know without loading anything heavy."""

from collections.abc import Callable
from typing import Any

import msgspec


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
    """Kind of the artifact it makes, or a function from the config to it."""
    stream: bool = False
    """Whether the output can be a stream on stdout."""
    example: str = ""
    implied: str = ""
    """`module:function` from inputs found to all inputs: for one that another input names, as an adapter its base."""
    safe_to_change: frozenset[str] = frozenset()
    """Config fields that do not alter the result, and so are left out of the content key."""
    ranks: bool = False
    """Whether several processes of a launcher (torchrun, accelerate) may run it together; rank 0 writes."""

    def kind(self, config: Any) -> str:
        """Kind of the artifact that `config` makes."""
        return self.output if isinstance(self.output, str) else self.output(config)
