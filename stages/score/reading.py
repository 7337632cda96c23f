"""Rows as the model reads them: as they are, each with another row's answer, or each with another prompt."""

import numpy as np
from numpy.typing import NDArray

from postmill.io.errors import BAD_DATA, USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.other_prompts import OtherPrompts
from postmill.io.packed import Bin, TokenRows
from postmill.io.partners import Partners
from postmill.stages.protocol import Input, Inputs
from postmill.stages.score.config import Score
from postmill.stages.shared.batch import Batch
from postmill.stages.shared.media.pixels import Pixels


class Reading:
    """The rows of one run. `kind`: of the head that is asked."""

    def __init__(self, cfg: Score, inputs: Inputs, rows: TokenRows, kind: str) -> None:
        """Raises ConfigError (2) for what does not go together; ArtifactError (65) for rows that are too long for the
        model or have no partners, (78) for prompts of other rows."""
        self.rows, model = rows, inputs["model"][0]
        if not len(rows):
            raise ArtifactError("no rows to score; check the ledger of tokenize", BAD_DATA)
        self._partners = Partners(rows) if cfg.partners else None
        if self._partners is not None and (self._partners.of_row < 0).all():
            raise ArtifactError("--partners: no row has a label, which says what is an answer to judge", BAD_DATA)
        self._others = _others(cfg, inputs, rows, kind)
        self._pixels: Pixels | None = None
        if rows.have_pictures and kind == "lm":
            if cfg.partners:
                raise ConfigError("--partners: rows with pictures have no partners yet; leave it out", USAGE)
            assert model.path is not None
            self._pixels = Pixels(model.path)
        self._check_lengths(model)

    def lengths(self, part: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each row, int64 [R]."""
        if self._others is not None:
            return self._others.lengths(part)
        return self.rows.columns(part, ["length"])["length"].astype(np.int64)

    def readable(self, part: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows there is something to read of, [R]: not those that no other row's answer goes with."""
        return np.ones(len(part), np.bool_) if self._partners is None else self._partners.of_row[part] >= 0

    def lay(self, part: NDArray[np.int64]) -> tuple[Bin, NDArray[np.int64]]:
        """Readable rows end to end, and by how many tokens each answer lies later than in the row itself, int64 [R]."""
        if self._others is not None:
            return self._others.lay(part)
        laid = self.rows.lay(part) if self._partners is None else self._partners.lay(part)
        return laid, np.zeros(len(part), np.int64)

    def with_pictures(self, batch: Batch, part: NDArray[np.int64]) -> Batch:
        """The batch of `part` with the pictures of its rows."""
        return batch if self._pixels is None else batch._replace(media=self._pixels.of_rows(self.rows, part, batch))

    def _check_lengths(self, model: Input) -> None:
        assert model.path is not None
        config = load_json(model.path / "config.json")
        window = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
        lengths = self.lengths(np.arange(len(self.rows)))
        if isinstance(window, int) and lengths.max() > window:
            raise ArtifactError(
                f"row {int(lengths.argmax()):,}: {int(lengths.max()):,} tokens, {model.name} reads {window:,}; tokenize"
                f" with --max-length {window}",
                BAD_DATA,
            )


def _others(cfg: Score, inputs: Inputs, rows: TokenRows, kind: str) -> OtherPrompts | None:
    if not inputs["prompts"]:
        return None
    if cfg.partners or cfg.where == "all" or rows.have_pictures or kind != "lm":
        raise ConfigError(
            "--prompts: with other prompts only log-probs of answers are written, and only of text; leave out"
            " --partners, --where all, pictures and other heads",
            USAGE,
        )
    artifact = inputs["prompts"][0].artifact
    assert artifact is not None
    return OtherPrompts(rows, artifact)
