"""One number of an item of a task."""

import msgspec


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A metric's value for one item."""

    metric: str
    value: float
    said: str
    """What was chosen, extracted, or what happened."""
    parts: list[float] = []
    """What `value` is the mean of, where the task's number is the mean over all parts of all items."""
