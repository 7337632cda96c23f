"""What stands on a model's layers, as a value that is cheap to read."""

from typing import Literal

import msgspec

Pooling = Literal["last", "mean", "cls"]


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A head, in the layout that transformers saves."""

    kind: Literal["lm", "sequence", "token", "pool", "answers"] = "lm"
    """lm: numbers about the next token. sequence, token: a linear layer that reads one token of each row, or the tokens
    that the objective names. pool: one vector a row, without a layer of its own. answers: how much more likely one of
    two tokens is than the other behind each row, by the language model's head."""
    outputs: int = 1
    """Numbers a classifier gives."""
    problem: Literal["single_label", "multi_label", "regression"] | None = None
    """What a classifier's numbers are, for whoever loads it."""
    pooling: Pooling = "last"
    """What a row's vector is made of: its last token, the mean over its tokens, or its first token."""
    answers: tuple[str, str] | None = None
    """Of kind answers: the token that says yes, and the one that says no."""


LM = Head()
WITH_LM_HEAD = ("lm", "answers")
"""Kinds that a causal language model answers as it is."""
AUTO_CLASS = {
    "lm": "AutoModelForCausalLM",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "pool": "AutoModel",
    "answers": "AutoModelForCausalLM",
}
"""The class of transformers that loads each kind."""
PROBLEM_TYPE = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""What transformers' configs call it."""
PEFT_TASK = {
    "lm": "CAUSAL_LM",
    "sequence": "SEQ_CLS",
    "token": "TOKEN_CLS",
    "pool": "FEATURE_EXTRACTION",
    "answers": "CAUSAL_LM",
}
"""What peft calls it in an adapter's config."""
CLASSIFIERS = ("score", "classifier")
"""Names of the modules that make a classifier's numbers; they are trained whole."""
