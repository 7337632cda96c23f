"""The kinds of artifacts: which tables they hold, and which of their files a manifest does not vouch for.

A reader of a kind says here what it checks; writers and the runner look it up. A package of somebody else's adds a kind
by an entry point of the group `postmill.kinds`, `NAME = module:KIND`.
"""

import msgspec
import pyarrow as pa

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.schemas import (
    BINS_V1,
    EVAL_ITEMS_V1,
    EVAL_SCORES_V1,
    PIXELS_V1,
    PROMPTS_V1,
    REWARDS_V1,
    ROLLOUTS_V1,
    SCORES_V1,
    TOKENS_V1,
)


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact of one kind holds."""

    tables: dict[str, pa.Schema] = {}
    """File -> the schema that its readers ask for."""
    stream: pa.Schema | None = None
    """Schema of the rows where this kind comes through a pipe; unset where it never does."""
    maker: str = ""
    """The command that makes one of what comes before it: what an error names as its remedy."""


KINDS: dict[str, Kind] = {
    "tokens": Kind(tables={"tokens.arrow": TOKENS_V1}, stream=TOKENS_V1, maker="postmill tokenize"),
    "prompts": Kind(tables={"prompts.arrow": PROMPTS_V1}, stream=PROMPTS_V1, maker="postmill tokenize --for prompt"),
    "packed": Kind(tables={"bins.arrow": BINS_V1}, maker="postmill pack"),
    "pixels": Kind(tables={"pixels.arrow": PIXELS_V1}, maker="postmill pixels"),
    "rollouts": Kind(tables={"rollouts.arrow": ROLLOUTS_V1}, maker="postmill rollout"),
    "rewards": Kind(tables={"rewards.arrow": REWARDS_V1}, maker="postmill reward"),
    "scores": Kind(tables={"scores.arrow": SCORES_V1}, maker="postmill score"),
    "model": Kind(maker="postmill merge"),
    "adapter": Kind(maker="postmill train"),
    "gguf": Kind(),
    "checkpoint": Kind(),
    "mcore": Kind(),
    "eval": Kind(tables={"items.arrow": EVAL_ITEMS_V1, "scores.arrow": EVAL_SCORES_V1}),
}
"""Kind -> what it holds."""


def find_kind(name: str) -> Kind:
    """A kind of ours, or one that an installed package adds. Raises ArtifactError (78) for a name that nobody knows."""
    kind = _known(name)
    if kind is None:
        raise ArtifactError(f"{name}: no such kind of artifact; there are {', '.join(KINDS)}", MISMATCH)
    return kind


def maker_of(name: str) -> str:
    """The command that makes an artifact of a kind; empty for a kind without one, and for what is no kind (`file`)."""
    kind = _known(name)
    return kind.maker if kind else ""


def _known(name: str) -> Kind | None:
    if name in KINDS:
        return KINDS[name]
    # as in `postmill.stages.tables`, loaded only for a name that is not ours
    from importlib.metadata import entry_points

    for entry in entry_points(group="postmill.kinds"):
        if entry.name == name:
            kind: Kind = entry.load()
            return kind
    return None
