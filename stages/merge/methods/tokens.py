"""Trained rows of an embedding (`trainable_token_indices`, TRAINABLE_TOKENS): they replace the base's rows."""

import re

import numpy as np

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.stages.merge.edits import SetRows
from postmill.stages.merge.methods.module import Edits, Module, pattern_value

PART = "trainable_tokens_delta"


def tokens(module: Module) -> Edits:
    """Raises ArtifactError (65) if the config does not say which rows these are, ConfigError (2) for a scaled one."""
    rows = module.part(PART)
    module.need_full_strength()
    indices = module.config.get("trainable_token_indices", module.config.get("token_indices"))
    if isinstance(indices, dict):
        indices = pattern_value({re.escape(key): value for key, value in indices.items()}, module.name, None)
    if not isinstance(indices, list):
        raise ArtifactError(
            f"{module.path / 'adapter_config.json'}: trainable_token_indices does not list the tokens of {module.name}",
            BAD_DATA,
        )
    if len(indices) != len(rows):
        raise module.damaged(f"trained tokens: {len(rows)} rows for {len(indices)} token indices")
    return [(module.tensor(), SetRows(np.array(indices, np.int64), rows))]
