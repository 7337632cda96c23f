"""Options of the reward that runs programs."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Code(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How `--func code` runs programs."""

    tests: str = "tests"
    """Column of the prompts that holds the tests: assertions as a text or a list of texts, a list of
    {"input": ..., "output": ...}, or {"inputs": [...], "outputs": [...]} for standard input and output."""
    credit: Literal["all", "share"] = "all"
    """all: 1 if every test passes, otherwise 0; share: the share of tests that pass."""
    sandbox: Literal["strong", "weak"] = "strong"
    """strong: namespaces and a filter of system calls; weak: limits only, for where strong cannot be had."""
    test_limit_s: Annotated[float, Meta(gt=0)] = 5.0
    """Longest time for one test. All tests of a row together have four fifths of --time-limit-s."""
    test_memory_mb: Annotated[int, Meta(ge=32)] = 512
    """Most memory of a program, in MiB."""
