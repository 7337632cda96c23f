"""Rows of a `tokens` artifact, chosen by their own digests: the same rows whatever their order or number of files."""

from collections.abc import Container
from pathlib import Path

from postmill.io.errors import BAD_DATA, MISMATCH, ArtifactError
from postmill.io.media import patches_of
from postmill.io.model_folder import tokenizer_digest
from postmill.io.schemas import TOKENS_V1
from postmill.io.table import TableReader
from postmill.stages.protocol import Input


def choose_rows(
    tokens: Input, budget: int, longest: int, tokenizer: str | None, besides: Container[bytes] = ()
) -> dict[bytes, list[int]]:
    """Ids by row_id, in the order of row_id, of `budget` tokens in all; each row cut to `longest`, none in `besides`,
    none with pictures: ids alone are not what a model sees of these.

    tokenizer: digest of the model's, or None if it has none. Raises ArtifactError: 78 if the rows were made with
    another tokenizer, 65 if no row has two tokens.
    """
    assert tokens.artifact is not None
    made_with = tokens.artifact.manifest.digests.get("tokenizer")
    if tokenizer and made_with and made_with != tokenizer:
        raise ArtifactError(
            f"{tokens.path}: made with tokenizer {made_with[:19]}, the model has {tokenizer[:19]}; tokenize again with"
            " this model",
            MISMATCH,
        )
    table = TableReader(tokens.artifact.file("tokens.arrow"), TOKENS_V1)
    candidates: list[tuple[bytes, int, int]] = []
    for index in range(table.num_batches):
        batch = table.batch(index)
        lengths, patches = batch["length"].to_pylist(), patches_of(batch).tolist()
        for at, row_id in enumerate(batch["row_id"].to_pylist()):
            if lengths[at] >= 2 and not patches[at] and row_id not in besides:
                candidates.append((row_id, index, at))
    candidates.sort()
    chosen: dict[bytes, list[int]] = {}
    for row_id, index, at in candidates:
        if budget < 2:
            break
        ids = table.batch(index)["input_ids"][at].as_py()[: min(longest, budget)]
        chosen[row_id] = ids
        budget -= len(ids)
    if not chosen:
        raise ArtifactError(
            f"{tokens.path}: no row of two tokens and without pictures is left to use; give more rows", BAD_DATA
        )
    return chosen


def tokenizer_of(model: Path) -> str | None:
    """Digest of a model's tokenizer, if it has one."""
    return tokenizer_digest(model) if (model / "tokenizer.json").is_file() else None
