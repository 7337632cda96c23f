"""Answers that a grammar describes: which tokens may come next.

The library llguidance walks the grammar. It is given a vocabulary with one token more, which ends a text; so the
model's own stop ids are allowed where, and only where, the text may end.
"""

import copy
import importlib
import importlib.util
import json
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.engine.protocol import Constraint

_MOST_BYTES = 64 << 10
_MOST_KEPT = 256
"""Grammars that stay compiled."""
_END = "<|end of the grammar|>"
_JSON = {"whitespace_pattern": r"[ \t\n]{1,20}"}
"""Without a bound, a model that likes blanks never comes to an end."""


def can_constrain() -> bool:
    """Whether the library is there."""
    return importlib.util.find_spec("llguidance") is not None


class Guide:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any, vocab: int, end: int, stop_ids: frozenset[int], after: int | None) -> None:
        """end: the id that stands for the end of a text. after: the grammar begins behind this token; before it,
        everything is allowed but to end."""
        self._matcher, self._vocab, self._end, self._after = matcher, vocab, end, after
        self._stop_ids = torch.tensor(sorted(token for token in stop_ids if token < vocab), dtype=torch.long)
        self.is_over = False
        """Nothing can follow, not even a token that ends the answer."""
        self.allowed_V = self._allowed()

    def take(self, token: int) -> None:
        """Go on by a token of those allowed."""
        if self._after is not None:
            self._after = None if token == self._after else self._after
        elif bool((self._stop_ids == token).any()):
            return
        elif not self._matcher.consume_token(token):
            self.is_over = True
            return
        self.allowed_V = self._allowed()
        self.is_over = not bool(self.allowed_V.any())

    def _allowed(self) -> Tensor:
        if self._after is not None:
            allowed_V, may_end = torch.ones(self._vocab, dtype=torch.bool), False
        else:
            bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
            allowed_V, may_end = torch.from_numpy(bits[: self._vocab]).bool(), bool(bits[self._end])
            allowed_V[self._end :] = False  # rows of the model that no token has
        allowed_V[self._stop_ids] = may_end
        return allowed_V


class Grammars:
    """Compiles constraints for one vocabulary. May be used by several threads."""

    def __init__(self, tokenizer: Any, vocab: int) -> None:
        """tokenizer: of the tokenizers library. vocab: logits that the model gives."""
        lib: Any = importlib.import_module("llguidance")
        self._lib, self._vocab = lib, vocab
        own = copy.deepcopy(tokenizer)
        own.no_padding()
        own.no_truncation()
        own.add_special_tokens([_END])
        self._end: int = own.token_to_id(_END)
        self._tokenizer = lib.LLTokenizer(own.to_str(), n_vocab=max(vocab, self._end + 1), eos_token=[self._end])
        self._compiled: dict[Constraint, Any] = {}

    def fault(self, constraint: Constraint) -> str:
        """Why no answer can be held to it; empty if one can."""
        if len(constraint.source.encode()) > _MOST_BYTES:
            return f"the {constraint.kind} is larger than {_MOST_BYTES} bytes"
        try:
            self._compile(constraint)
        except ConfigError as error:
            return str(error)
        return ""

    def guide(self, constraint: Constraint, stop_ids: frozenset[int]) -> Guide:
        """For one answer. `fault` has been asked."""
        return Guide(self._compile(constraint).deep_copy(), self._vocab, self._end, stop_ids, constraint.after)

    def _compile(self, constraint: Constraint) -> Any:
        key = Constraint(kind=constraint.kind, source=constraint.source)
        if key not in self._compiled:
            matcher = self._lib.LLMatcher(self._tokenizer, self._grammar(key), log_level=0)
            if matcher.is_error():
                raise ConfigError(f"{key.kind}: {_first_line(matcher.get_error())}", USAGE)
            if not any(matcher.compute_bitmask()) or matcher.is_error():
                raise ConfigError(f"{key.kind}: no text fits it", USAGE)
            while len(self._compiled) >= _MOST_KEPT:
                self._compiled.pop(next(iter(self._compiled)), None)
            self._compiled[key] = matcher
        return self._compiled[key]

    def _grammar(self, constraint: Constraint) -> str:
        """In the library's notation. Raises ConfigError (2)."""
        source, matcher = constraint.source, self._lib.LLMatcher
        grammar: str
        try:
            if constraint.kind == "json_schema":
                if not isinstance(json.loads(source), dict):
                    raise ValueError("expected an object")
                grammar = matcher.grammar_from_json_schema(source, overrides=_JSON)
            elif constraint.kind == "regex":
                grammar = matcher.grammar_from_regex(source)
            elif constraint.kind == "choice":
                texts = json.loads(source)
                if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
                    raise ValueError("expected texts, one or more")
                grammar = matcher.grammar_from_regex("|".join(re.escape(text) for text in texts))
            else:
                to_lark = importlib.import_module("llguidance.gbnf_to_lark").any_to_lark
                grammar = matcher.grammar_from_lark(to_lark(source))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{constraint.kind}: {_first_line(str(error))}", USAGE) from None
        return grammar


def _first_line(text: str) -> str:
    """What is wrong, of a message that goes on to show where."""
    lines = [line.strip() for line in text.splitlines()]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (named or lines or [""])[0][:300]
