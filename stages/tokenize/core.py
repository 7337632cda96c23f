"""Calls into the Rust core: several at once with their results in order, and its refusals as our own errors."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from postmill import _native
from postmill.io.errors import ArtifactError, ConfigError

Item = TypeVar("Item")
Made = TypeVar("Made")


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What the Rust core refuses, as our own errors; also where it was built from other sources than these."""
    try:
        yield
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(f"the native part is older than this source tree ({error}); run make setup") from error
    except _native.NativeError as error:
        refusal = ConfigError if error.code == 2 else ArtifactError
        raise refusal(str(error), error.code) from error


def in_order(call: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """`map(call, items)` on threads, with a bounded number of items on their way."""
    with ThreadPoolExecutor(threads, "tokenize") as pool:
        pending: deque[Future[Made]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(call, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
