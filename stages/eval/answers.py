"""What a model answered to a question: a row of `items.arrow`."""

import msgspec


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`output`, or the `error` why nothing could be asked. `finish_reason` is `stop` or `length`."""

    item_id: str
    prompt_ids: list[int] = []
    output: str | None = None
    output_ids: list[int] = []
    finish_reason: str | None = None
    error: str | None = None
