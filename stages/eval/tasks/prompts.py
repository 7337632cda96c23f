"""From the rows of a task to what is asked: solved rows, the row itself, and the texts to choose from."""

import random
from typing import Any

import msgspec

from postmill.io.errors import BAD_DATA, USAGE, ArtifactError, ConfigError
from postmill.stages.eval.tasks.prepare import PREPARE
from postmill.stages.eval.tasks.task import Task, Texts

Row = dict[str, Any]
_SEED = 1234
"""lm-eval's default for few-shot rows."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One row, ready to be asked."""

    item_id: str
    group: str
    context: str
    """What stands before the answer; of a task with a context for each choice, the first one."""
    pairs: list[tuple[str, str]]
    """For each choice: its context and what follows."""
    choices: list[str]
    """The choices' own texts, by whose length log-probs are normalised."""
    target: int | str
    labels: list[int]
    row: Row = {}


def make_items(task: Task, splits: dict[str, list[Row]], *, fewshot: int, limit: int) -> list[Item]:
    """The rows of the split that is asked, `test` or else `validation`.

    limit: only the first rows; 0 is all. Few-shot rows of the others are drawn all the same.
    Raises ArtifactError (65) for a row that the task cannot read; ConfigError (2) for a split that is missing.
    """
    asked = next((name for name in ("test", "validation") if name in splits), "")
    if not asked:
        raise ConfigError("--data: the rows to ask are missing; pass --data test=FILE", USAGE)
    writer = _Writer(task)
    rows = [writer.prepared(row, asked, number) for number, row in enumerate(splits[asked])]
    pool: list[Row] = []
    if fewshot and task.fewshot.rows:
        pool = task.fewshot.rows
    elif fewshot:
        name = task.fewshot.split
        if name not in splits:
            raise ConfigError(f"--data: rows to show are missing; pass --data {name}=FILE, or --fewshot 0", USAGE)
        pool = [writer.prepared(row, name, number) for number, row in enumerate(splits[name])]
    sampler = _Sampler(task, pool, fewshot, one_more=task.fewshot.one_more or task.fewshot.split == asked)
    wanted = rows[: limit or len(rows)]
    return [writer.item(row, sampler.draw(row), asked, number) for number, row in enumerate(wanted)]


class _Sampler:
    """Solved rows for each row, as lm-eval draws them."""

    def __init__(self, task: Task, pool: list[Row], count: int, *, one_more: bool) -> None:
        self._task, self._pool, self._count, self._one_more = task, pool, count, one_more
        self._random = random.Random(_SEED)  # noqa: S311  the harness's own generator

    def draw(self, row: Row) -> list[Row]:
        """For the next row; the row itself is not among them. Raises ConfigError (2) where there are too few."""
        if not self._count:
            return []
        pool = self._pool
        if self._task.fewshot.order == "first":
            group = self._task.group
            is_own = bool(self._task.fewshot.rows)
            pool = [other for other in pool if (is_own or other.get(group) == row.get(group)) and other != row]
            shots = pool[: self._count]
        elif self._one_more:
            drawn = self._random.sample(pool, min(self._count + 1, len(pool)))
            shots = [other for other in drawn if other != row][: self._count]
        else:
            shots = self._random.sample(pool, min(self._count, len(pool)))
        if len(shots) < self._count:
            split = "the task" if self._task.fewshot.rows else self._task.fewshot.split
            raise ConfigError(f"--fewshot {self._count}: {split} has {len(shots)} rows to show", USAGE)
        return shots


class _Writer:
    """Rows to texts."""

    def __init__(self, task: Task) -> None:
        self._task, self._texts = task, Texts(task)

    def prepared(self, row: Row, split: str, number: int) -> Row:
        """The row as templates read it."""
        if not self._task.prepare:
            return row
        try:
            return PREPARE[self._task.prepare](row)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise _unread(split, number, error) from None

    def item(self, row: Row, shown: list[Row], split: str, number: int) -> Item:
        """The row with solved ones before it."""
        from jinja2.exceptions import TemplateError

        task, texts = self._task, self._texts
        choices: list[str] = []
        pairs: list[tuple[str, str]] = []
        try:
            before = texts.text("description", row) + "".join(self._solved(other) for other in shown)
            target = texts.value("target", row)
            if task.kind == "generate":
                context, target = before + texts.text("prompt", row), str(target)
            else:
                target = int(target)
                choices, pairs, context = self._choices(row, before)
            labels = [int(label) for label in texts.value("labels", row)] if task.labels else []
        except (TemplateError, KeyError, ValueError, TypeError, IndexError) as error:
            raise _unread(split, number, error) from None
        if choices and not 0 <= int(target) < len(choices):
            raise _unread(split, number, f"the right choice is {target} of {len(choices)}")
        if choices and not all(choices):
            raise _unread(split, number, "a choice is empty")
        return Item(
            item_id=f"{split}-{number}",
            group=str(row.get(task.group, "")),
            context=context,
            pairs=pairs,
            choices=choices,
            target=target,
            labels=labels,
            row=row,
        )

    def _choices(self, row: Row, before: str) -> tuple[list[str], list[tuple[str, str]], str]:
        task, texts = self._task, self._texts
        if task.contexts:
            choices = [str(text) for text in texts.value("contexts", row)]
            ending = task.delimiter + str(texts.value("ending", row))
            return choices, [(before + text, ending) for text in choices], before + choices[0]
        choices = [str(text) for text in texts.value("choices", row)]
        context = before + texts.text("prompt", row)
        return choices, [(context, task.delimiter + text) for text in choices], context

    def _solved(self, row: Row) -> str:
        task, texts = self._task, self._texts
        target = texts.value("target", row)
        if task.contexts:
            question, answer = texts.value("contexts", row)[int(target)], texts.value("ending", row)
        else:
            question = texts.text("prompt", row)
            answer = texts.value("choices", row)[int(target)] if task.kind == "choice" else target
        return f"{question}{task.delimiter}{answer}{task.separator}"


def _unread(split: str, number: int, why: object) -> ArtifactError:
    text = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
    return ArtifactError(f"{split}: row {number + 1}: the task cannot read it: {text[:200]}", BAD_DATA)
