"""The two tokens of a generative reranker: what it would say of a text that fits, and of one that does not."""

import importlib
from pathlib import Path
from typing import Any

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.heads import Head

HINT = "write the name that tokenizer.json has for it, as in --answers yes,no"


def answers_head(answers: list[str]) -> Head:
    """The head that compares both, given one by one or as `yes,no`. Raises ValueError unless there are two, and they
    differ."""
    if len(answers) == 1:
        answers = answers[0].split(",")
    if len(answers) != 2 or answers[0] == answers[1]:
        raise ValueError(f"answers: {','.join(answers)!r}, expected two tokens, the one for a text that fits first")
    return Head(kind="answers", answers=(answers[0], answers[1]))


def check_answers(answers: list[str], head: str) -> None:
    """Raises ValueError for answers that are not two, or that come with another `head` than auto."""
    if answers:
        answers_head(answers)
        if head != "auto":
            raise ValueError(f"answers and head {head}: two heads; leave one of them out")


def answer_ids(folder: Path, answers: tuple[str, str]) -> tuple[int, int]:
    """Their ids in the model's vocabulary: of the token of that name, or of the one that the text becomes.

    Raises ConfigError (2) for an answer that is no token, and for two that are the same.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"--answers: {folder} has no tokenizer.json, whose tokens they are; use another model", USAGE)
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    ids = []
    for answer in answers:
        named = tokenizer.token_to_id(answer)
        found = [named] if named is not None else tokenizer.encode(answer, add_special_tokens=False).ids
        if len(found) != 1:
            raise ConfigError(f"--answers: {answer!r} is {len(found)} tokens of {folder}, expected one; {HINT}", USAGE)
        ids.append(int(found[0]))
    if ids[0] == ids[1]:
        raise ConfigError(f"--answers: {answers[0]!r} and {answers[1]!r} are one token of {folder}; {HINT}", USAGE)
    return ids[0], ids[1]
