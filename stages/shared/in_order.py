"""Work on threads whose results come in order, with a bounded number of items on their way."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(call: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """`map(call, items)` on threads, with a bounded number of items on their way."""
    with ThreadPoolExecutor(threads, "in-order") as pool:
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
