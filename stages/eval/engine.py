"""What an engine is: something that answers requests in batches. Each engine is one file in `engines/`."""

from typing import Protocol

import msgspec

from postmill.stages.eval.questions import Message


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation to go on with. `seed` is the request's own, so that its answer depends on no other's."""

    item_id: str
    messages: list[Message]
    seed: int


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back: `output`, or the `error` why nothing could be asked. `finish_reason` is `stop` or `length`."""

    item_id: str
    prompt_ids: list[int] = []
    output: str | None = None
    output_ids: list[int] = []
    finish_reason: str | None = None
    error: str | None = None


class Engine(Protocol):
    """A model, ready. A failure of one request is a Reply with an error; a failure of the engine is raised."""

    versions: dict[str, str]

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """The requests in the groups they are to be answered in; a pure function of them."""
        ...

    def answer(self, batch: list[Request]) -> list[Reply]:
        """One reply a request, in order."""
        ...
