"""Options of `pack`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.spec import Port, Stage


class Pack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lay token sequences into bins of bounded length, best fit first."""

    row_tokens: Annotated[int, Meta(ge=1, le=2**24)]
    """Length of one bin, in tokens."""
    strategy: Literal["best_fit", "in_order", "wrapped"] = "best_fit"
    """`best_fit` places the longest rows first over the whole input and shuffles the bins; `in_order` keeps the input
    order and wastes more of each bin; `wrapped` lays rows end to end, cuts them where a bin ends, goes on in the next
    bin, and shuffles the bins. It copies the tokens."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """Orders the bins of `best_fit` and `wrapped`, together with the epoch and the number of bins."""
    on_long: Literal["error", "drop"] = "error"
    """What to do with a row that is longer than a bin. Only `wrapped` cuts rows; `tokenize` truncates."""
    order: Literal["given", "easy-first", "hard-first"] = "given"
    """Order of rows before they are laid into bins `in_order`: as given, or by how sure the model of `--scores` was of
    them, the mean of -log p over the scored tokens of a row (and of rows that go together)."""
    together: bool = True
    """Put samples of one prompt into the same bin, as many as fit, so that train computes the prompt once."""
    hidden_size: Annotated[int, Meta(ge=1)] = 4096
    """Hidden size of the model. A bin costs its tokens + sum(row length^2) / (6 * hidden_size), by which ranks are
    balanced."""
    patch_cost: Annotated[float, Meta(ge=0)] = 0.25
    """What a patch of a picture costs a bin, beside a token that costs 1."""

    def __post_init__(self) -> None:
        if self.order != "given" and self.strategy != "in_order":
            raise ValueError(
                f"order {self.order} and strategy {self.strategy}: its bins are shuffled; pass --strategy in_order"
            )


STAGE = Stage(
    name="pack",
    version=2,
    config=Pack,
    inputs={
        "tokens": Port(
            kinds=("tokens", "rollouts"),
            help="tokens or rollouts artifacts, packed as one; or - for a stream of tokens",
            many=True,
            stream=True,
        ),
        "scores": Port(
            kinds=("scores",),
            flag="--scores",
            help="what a model thinks of these rows (postmill score), for --order",
            required=False,
        ),
        "rewards": Port(
            kinds=("rewards",),
            flag="--rewards",
            help="rewards of these rollouts: samples without an advantage are left out",
            many=True,
            required=False,
        ),
    },
    output="packed",
    example="postmill pack tokens/ -o packed/ --row-tokens 4096",
)
