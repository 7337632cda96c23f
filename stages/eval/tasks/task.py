"""A task: how rows of a benchmark become prompts, and how answers become numbers. A TOML file each.

Names, texts and rules are those of lm-eval (<https://github.com/EleutherAI/lm-evaluation-harness>), so that numbers can
be compared with published ones; `version` is its version of the task. Texts are Jinja, what picks a value is a Jinja
expression, both over the columns of a row. A row without a `subject` gets the name of its file.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.io.errors import BAD_DATA, USAGE, ArtifactError, ConfigError
from postmill.stages.eval.tasks.prepare import PREPARE
from postmill.stages.tables import closest

_FOLDER = Path(__file__).parent
TASKS = tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


Metric = Literal["acc", "acc_norm", "mc2", "exact_match", "pass", "ifeval", "em", "f1", "bleu", "chrf", "rouge"]


class Fewshot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Solved rows before the one that is asked."""

    count: Annotated[int, Meta(ge=0)] = 0
    split: str = "train"
    rows: list[dict[str, Any]] = []
    """Solved rows of the task's own, in place of those of a split."""
    order: Literal["first", "random"] = "random"
    """random: drawn anew for each row from one generator, in the order of the rows."""
    one_more: bool = False
    """Draw one more than is shown, as lm-eval does where a benchmark has no test split: it moves the generator."""


class Extract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of an answer counts: one of the matches of a pattern."""

    name: str
    pattern: str
    pick: int = 0


class Equal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When what was extracted equals the target: after these patterns are cut out of both."""

    ignore_case: bool = False
    ignore: list[str] = []


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task, checked."""

    name: str = ""
    version: float
    kind: Literal["choice", "generate"]
    """choice: the likeliest of given texts. generate: a text, of which a part is compared."""
    prompt: str
    """Template of what is asked."""
    target: str
    """Expression: the number of the right choice, or the text of the right answer."""
    choices: str = ""
    """Expression: the texts to choose from."""
    contexts: str = ""
    """Expression: a context for each choice, in place of the prompt; then `ending` follows each."""
    ending: str = ""
    """Expression: what follows each of `contexts`."""
    delimiter: str = " "
    """Between prompt and answer."""
    separator: str = "\n\n"
    """Between solved rows."""
    description: str = ""
    """Template of what stands before all."""
    fewshot: Fewshot = Fewshot()
    prepare: str = ""
    """Name of a function that changes rows, of `prepare.py`."""
    metrics: list[Metric]
    program: str = ""
    """Template, for pass: the program that has to come to its end, of the row and the answer, `prediction`."""
    labels: str = ""
    """Expression, for mc2: 1 for each choice that is true, else 0; the true ones come first."""
    stop: list[str] = []
    max_tokens: int = 256
    extract: list[Extract] = []
    equal: Equal = Equal()
    group: str = "subject"
    """Column that names parts of the summary."""

    def __post_init__(self) -> None:
        if self.kind == "choice" and bool(self.contexts) != bool(self.ending):
            raise ValueError("contexts and ending belong together")
        if self.kind == "choice" and bool(self.contexts) == bool(self.choices):
            raise ValueError("a choice needs choices, or contexts with an ending")
        if self.prepare and self.prepare not in PREPARE:
            raise ValueError(f"prepare {self.prepare!r}: there are {', '.join(PREPARE)}")
        if ("mc2" in self.metrics) != bool(self.labels):
            raise ValueError("mc2 and labels belong together")
        if ("pass" in self.metrics) != bool(self.program):
            raise ValueError("pass and program belong together")
        if (self.kind == "choice") != (not set(self.metrics) - {"acc", "acc_norm", "mc2"}):
            raise ValueError("acc, acc_norm and mc2 are metrics of a choice, the others of a text")


def load_task(name: str) -> Task:
    """A built-in task. Raises ConfigError (2) for a name that there is not."""
    if name not in TASKS:
        raise ConfigError(f"--task {name}: no such task{closest(name, list(TASKS))}; see --task-file", USAGE)
    return read_task(_FOLDER / f"{name}.toml")


def read_task(path: Path) -> Task:
    """The task that a file describes. Raises ArtifactError (65) for a file that describes none."""
    try:
        task = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Task)
        Texts(task)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: {error}", BAD_DATA) from None
    return msgspec.structs.replace(task, name=path.stem)


class Texts:
    """The templates and expressions of a task, compiled. They are sandboxed: a task may be somebody else's."""

    def __init__(self, task: Task) -> None:
        """Raises ValueError for a template that cannot be read."""
        from jinja2 import StrictUndefined, TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        env = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        names = ("target", "choices", "contexts", "ending", "labels")
        try:
            self._templates = {
                name: env.from_string(getattr(task, name)) for name in ("prompt", "description", "program")
            }
            self._expressions = {
                name: env.compile_expression(getattr(task, name), undefined_to_none=False)
                for name in names
                if getattr(task, name)
            }
        except TemplateSyntaxError as error:
            raise ValueError(f"a template cannot be read: {error}") from None

    def text(self, name: str, row: dict[str, Any]) -> str:
        """Raises jinja2's TemplateError for a row without what the template reads."""
        return self._templates[name].render(**row)

    def value(self, name: str, row: dict[str, Any]) -> Any:
        """Raises as `text`; ValueError for what cannot be found in a list."""
        return self._expressions[name](**row)
