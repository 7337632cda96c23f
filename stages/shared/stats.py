"""Numbers that may be asked of a language model's head; a module of its own, since what is cheap reads it."""

from typing import Literal

Stat = Literal["logp", "entropy", "correct", "lse", "collision"]
