"""What a model answered to a question: a row of `items.arrow`."""

import msgspec

from postmill.io.digest import digest_bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`output`, or the `error` why nothing could be asked. `finish_reason` is `stop` or `length`."""

    item_id: str
    prompt_ids: list[int] = []
    output: str | None = None
    output_ids: list[int] = []
    finish_reason: str | None = None
    error: str | None = None


def seed_of(seed: int, item_id: str) -> int:
    """A seed of the item's own, from the run's and its id."""
    digest = digest_bytes(f"{seed}:{item_id}".encode())
    return int(digest.removeprefix("blake3:")[:15], 16)
