"""What an engine knows of text: how ids read, for stop texts, and grammars that answers are held to.

Loaded when first asked for.
"""

from collections.abc import Callable
from pathlib import Path

from postmill.stages.shared.engine.constrain import Grammars, Guide, can_constrain
from postmill.stages.shared.engine.protocol import Constraint, Sampling
from postmill.stages.shared.engine.text import Speaker


class Language:
    """Of the weights in `folders`; `vocab`: logits that the model gives."""

    def __init__(self, folders: list[Path], vocab: int) -> None:
        self._folders, self._vocab = folders, vocab
        self._speaker: Speaker | None = None
        self._grammars: Grammars | None = None

    def decoder(self, sampling: Sampling) -> Callable[[list[int]], str] | None:
        """Ids to text, if the answer may end at one."""
        return self._spoken().decode if sampling.stop else None

    def guide(self, sampling: Sampling) -> Guide | None:
        """Holds one answer to its grammar, if it has one. `fault` has been asked."""
        if sampling.constraint is None:
            return None
        return self._compiler().guide(sampling.constraint, sampling.stop_ids)

    def fault(self, constraint: Constraint | None) -> str:
        """Why no answer can be held to it; empty if one can. Any thread may ask: it takes time."""
        if constraint is None:
            return ""
        if not can_constrain():
            return "grammars need llguidance; pip install 'postmill[constrain]'"
        if self._spoken().backend is None:
            return "grammars need a tokenizer of the tokenizers library"
        return self._compiler().fault(constraint)

    def _spoken(self) -> Speaker:
        self._speaker = self._speaker or Speaker(self._folders)
        return self._speaker

    def _compiler(self) -> Grammars:
        self._grammars = self._grammars or Grammars(self._spoken().backend, self._vocab)
        return self._grammars
