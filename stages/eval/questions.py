"""Questions: what is asked, what is expected, and by which rule the two are compared.

One JSON object a line, or one JSON list of them.

`question` or `messages` is asked; `answer` (or `expect`) is one text or several; `score` names the rule; `choices` are
offered with letters; `tools` are those that an `agent` may call; `group` names a part of the summary; `id` names the
row, by default by its place. `images` and `audios` are files below the folder of the questions, one for each `<image>`
and `<audio>` of the text. `objects` names things in pictures, for each `<ref-object>` of the text, and has the boxes of
which one is expected, in pixels.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.io.errors import BAD_DATA, USAGE, ArtifactError, ConfigError, one_line
from postmill.io.json_file import numbered_lines
from postmill.io.media import MOST_BYTES
from postmill.stages.eval.config import Eval, Rule
from postmill.stages.shared.measures import read_box

Message = dict[str, str]
OBJECT = "<ref-object>"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One question, checked. `rule` is unset where there is nothing to compare with."""

    item_id: str
    group: str
    messages: list[Message]
    answers: list[str]
    choices: list[str]
    rule: Rule | None
    tools: list[str] = []
    """Names that an action may have."""
    pictures: list[Path] = []
    """For each `<image>` of the messages."""
    sounds: list[Path] = []
    """For each `<audio>`."""
    names: list[str] = []
    """For each `<ref-object>`."""
    boxed: int | None = None
    """The picture whose boxes are expected, in its pixels; unset where answers are read as they are."""

    def prompt(self) -> str:
        """The conversation as canonical JSON: what two answers must share to be compared."""
        return msgspec.json.encode(self.named("{name}")).decode()

    def named(self, form: str) -> list[Message]:
        """The messages with names of objects in their places. form: how a name is written, with `{name}`."""
        if not self.names:
            return self.messages
        names = iter(self.names)

        def fill(text: str) -> str:
            return re.sub(OBJECT, lambda _: form.replace("{name}", next(names)), text)

        return [message | {"content": fill(message["content"])} for message in self.messages]


class _Objects(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Things in a picture, as rows to train on have them."""

    ref: list[str] = []
    bbox: list[tuple[float, float, float, float]] = []
    bbox_type: Literal["real"] = "real"
    image_id: list[Annotated[int, Meta(ge=0)]] = []


class _Line(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A line of the file as people write it. Unknown keys are refused: a mistyped `answer` must not go unnoticed."""

    id: str | int | None = None
    question: str | None = None
    messages: list[Message] | None = None
    system: str | None = None
    answer: str | int | float | list[str] | None = None
    expect: str | int | float | list[str] | None = None
    images: list[str] = []
    audios: list[str] = []
    objects: _Objects = _Objects()
    choices: list[str] = []
    tools: list[str | dict[str, Any]] = []
    score: Rule | None = None
    group: str = ""
    meta: Any = None


def read_questions(cfg: Eval, path: Path | None) -> list[Question]:
    """The questions of the file, then those of `--question`.

    Raises ArtifactError (65) naming the first line that is none, or a file without any, ConfigError (2) if nothing was
    asked at all.
    """
    questions = [_parse(cfg, path.parent, *row) for row in _rows(path)] if path else []
    for number, text in enumerate(cfg.question, 1):
        questions.append(_checked(cfg, Path(), _Line(question=text), "--question", f"question-{number}"))
    if not questions and path:
        raise ArtifactError(f"{path}: no questions in it; write one JSON object a line", BAD_DATA)
    if not questions:
        raise ConfigError("no questions; pass --ask FILE or --question TEXT", USAGE)
    seen: set[str] = set()
    for question in questions:
        if question.item_id in seen:
            raise ArtifactError(f"{path}: id {question.item_id!r} twice; ids name rows, so give each its own", BAD_DATA)
        seen.add(question.item_id)
    return questions


def _rows(path: Path) -> list[tuple[bytes, str, str]]:
    """Each question's JSON, its place, and the id it gets where it names none."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        try:
            items = msgspec.json.decode(data, type=list[msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"{path}: begins as a JSON list, but is none ({error}); write one JSON object a line", BAD_DATA
            ) from error
        return [(bytes(item), f"{path}: item {number}", f"item-{number}") for number, item in enumerate(items, 1)]
    return [(line, f"{path}:{number}", f"line-{number}") for number, line in numbered_lines(data)]


def _parse(cfg: Eval, folder: Path, line: bytes, place: str, default_id: str) -> Question:
    try:
        return _checked(cfg, folder, msgspec.json.decode(line, type=_Line), place, default_id)
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{place}: {error.reason} in UTF-8; save the file as UTF-8", BAD_DATA) from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        message = str(error)
        # "Object contains ..." but "JSON is malformed"
        start = message[:1] if message[1:2].isupper() else message[:1].lower()
        known = f"; a question has {', '.join(_Line.__struct_fields__)}" if "unknown field" in message else ""
        raise ArtifactError(f"{place}: {start}{message[1:]}{known}", BAD_DATA) from error


def _checked(cfg: Eval, folder: Path, line: _Line, place: str, default_id: str) -> Question:
    def fail(what: str) -> ArtifactError:
        return ArtifactError(f"{place}: {what}", BAD_DATA)

    if line.messages == [] or (line.question is not None and not line.question.strip()):
        raise fail("asks nothing; write a question, or at least one message")
    if (line.question is None) == (line.messages is None):
        raise fail("has both question and messages; keep one" if line.messages else "has no question and no messages")
    if line.answer is not None and line.expect is not None:
        raise fail("has both answer and expect; keep one")
    expected = line.answer if line.answer is not None else line.expect
    answers = [] if expected is None else expected if isinstance(expected, list) else [str(expected)]
    boxed = _boxed(line, answers, fail)
    if boxed is not None:
        answers = [", ".join(f"{number:g}" for number in box) for box in line.objects.bbox]
        line.score = line.score or "iou"
    rule = (line.score or ("choice" if line.choices else cfg.score)) if answers else None
    if rule in ("exact", "contains", "contains_all") and not all(answer.strip(" .!\t\n") for answer in answers):
        raise fail("an answer is empty, and everything contains nothing; write what is expected, or leave answer out")
    if line.score and not answers:
        raise fail(f'score is {line.score}, but there is no "answer" to compare with')
    _check_answers(rule, answers, fail)
    if rule == "choice":
        answers = [_choice_letter(answer, line.choices, fail) for answer in answers]
    messages = line.messages or [{"role": "user", "content": _ask(line.question or "", line.choices)}]
    for message in messages:
        if not message.keys() >= {"role", "content"}:
            raise fail(f"message {message!r} lacks role or content")
    system = line.system if line.system is not None else cfg.system
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return Question(
        item_id=default_id if line.id is None else str(line.id),
        group=line.group,
        messages=messages,
        answers=answers,
        choices=line.choices,
        rule=rule,
        tools=[_tool_name(tool, fail) for tool in line.tools],
        pictures=_files(folder, "image", line.images, messages, fail),
        sounds=_files(folder, "audio", line.audios, messages, fail),
        names=_names(line.objects.ref, messages, fail),
        boxed=boxed,
    )


def _boxed(line: _Line, answers: list[str], fail: Any) -> int | None:
    """The picture whose boxes are expected. Raises ArtifactError (65) for boxes that cannot be."""
    boxes, which = line.objects.bbox, set(line.objects.image_id) or {0}
    if not boxes:
        return None
    if answers:
        raise fail("has both an answer and objects with boxes; keep one")
    if line.score not in (None, "iou"):
        raise fail(f"score is {line.score}, and boxes are compared by iou; leave score out")
    if len(which) > 1 or max(which) >= len(line.images):
        raise fail(f"boxes of picture {sorted(which)}; expected one picture, of the {len(line.images)} in images")
    if broken := [box for box in boxes if box[0] < 0 or box[1] < 0 or box[0] >= box[2] or box[1] >= box[3]]:
        raise fail(f"the box {list(broken[0])} encloses nothing; give x1, y1, x2, y2 in pixels of the picture")
    return which.pop()


def _names(names: list[str], messages: list[Message], fail: Any) -> list[str]:
    """Names of objects, which need as many places in the texts."""
    num_places = sum(message["content"].count(OBJECT) for message in messages)
    if names and num_places != len(names):
        raise fail(f"has {len(names)} names of objects and {num_places} places; write {OBJECT} once for each")
    return names


def _check_answers(rule: Rule | None, answers: list[str], fail: Any) -> None:
    """Raises ArtifactError (65) for an answer that its rule cannot read."""
    if rule == "iou" and not all(read_box(answer) for answer in answers):
        raise fail("score is iou, and an answer is no box; write x1, y1, x2, y2, as the model should write them")
    for pattern in answers if rule == "regex" else []:
        try:
            re.compile(pattern)
        except re.error as error:
            raise fail(f"answer {pattern!r} is no regular expression ({error})") from error


def _files(folder: Path, kind: str, names: list[str], messages: list[Message], fail: Any) -> list[Path]:
    """The files of a question's pictures or sounds, which need as many places in its texts."""
    num_places = sum(message["content"].count(f"<{kind}>") for message in messages)
    if names and num_places != len(names):
        raise fail(f"has {len(names)} {kind}s and {num_places} places for them; write <{kind}> once for each")
    return [_file(folder, kind, name, fail) for name in names]


def _tool_name(tool: str | dict[str, Any], fail: Any) -> str:
    """A tool by its name, or as OpenAI and ToolBench describe one."""
    name = tool if isinstance(tool, str) else tool.get("function", tool).get("name")
    if not isinstance(name, str):
        raise fail(f"tool {str(tool)[:60]} has no name")
    return name


def _file(folder: Path, kind: str, name: str, fail: Any) -> Path:
    """A file below the folder of the questions."""
    root, shown = folder.resolve(), one_line(name, 200)
    try:
        path = (root / name).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long, a circle of links, a zero in it
        path, is_file = root, False
    if not path.is_relative_to(root):
        raise fail(f"{kind} '{shown}' is not below the folder of the questions; put it there")
    if not is_file:
        raise fail(f"{kind} '{shown}': no such file below the folder of the questions")
    if path.stat().st_size > MOST_BYTES:
        raise fail(f"{kind} '{shown}': has {path.stat().st_size} bytes, the most is {MOST_BYTES}; shrink it first")
    return path


def _ask(question: str, choices: list[str]) -> str:
    """The question with its choices. A letter is asked for and read from the text, so that any engine can be scored."""
    if not choices:
        return question
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{question}\n\n{listed}\n\nAnswer with the letter of the right choice."


def _choice_letter(answer: str, choices: list[str], fail: Any) -> str:
    """The letter of the right choice, given as letter or as its text."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise fail(f"score is choice with {len(choices)} choices, expected 2 to {len(LETTERS)}")
    if answer in choices:
        return LETTERS[choices.index(answer)]
    if answer.upper() in LETTERS[: len(choices)] and len(answer) == 1:
        return answer.upper()
    raise fail(f"answer {answer!r} is none of the choices and no letter of one")
