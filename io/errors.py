"""The three errors of Postmill, each with the exit code that make, Airflow and Slurm branch on.

A message is one lower-case line: place, value, rule, remedy. `hint` may add a second line.
"""

from typing import Final

FAILED: Final = 1
USAGE: Final = 2
BAD_DATA: Final = 65
NO_INPUT: Final = 66
UNAVAILABLE: Final = 69
INTERNAL: Final = 70
EXISTS: Final = 73
IO_ERROR: Final = 74
STOPPED: Final = 75
CUT_STREAM: Final = 76
REFUSED: Final = 77
MISMATCH: Final = 78
DIVERGED: Final = 79


def one_line(text: str, most: int = 500) -> str:
    """`text` for a terminal: what would move the cursor or end the line as escapes, the middle left out above `most`.

    For names and values of others' files, which may say anything.
    """
    if len(text) > most:
        half = (most - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ConfigError(ValueError):
    """Something the caller asked for cannot be: a flag, a key of a recipe, a combination."""

    def __init__(self, message: str, code: int = USAGE, hint: str = "") -> None:
        super().__init__(message, code, hint)
        self.message, self.code, self.hint = message, code, hint

    def __str__(self) -> str:
        return self.message


class ArtifactError(ValueError):
    """Something on disk or in a pipe is not what it should be: missing, cut, damaged, of another kind."""

    def __init__(self, message: str, code: int = BAD_DATA, hint: str = "") -> None:
        super().__init__(message, code, hint)
        self.message, self.code, self.hint = message, code, hint

    def __str__(self) -> str:
        return self.message


class StageError(RuntimeError):
    """The work itself could not be finished, or a gate said no."""

    def __init__(self, message: str, code: int = FAILED, hint: str = "") -> None:
        super().__init__(message, code, hint)
        self.message, self.code, self.hint = message, code, hint

    def __str__(self) -> str:
        return self.message
