"""What stands between two answers of a conversation, in tokens.

Ids are only ever added: the answer as it was sampled, what the template writes behind it, and the new messages up to
where the next answer begins. Whether that is what the template makes of the whole conversation is looked at each time;
where it writes the past otherwise (drops thinking, trims spaces), the ids cannot go on and the conversation forks.
"""

import itertools
import json
from typing import Any

from postmill import _native
from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.manifest import Artifact
from postmill.stages.shared.agent_formats.parser import Parser, guess_format
from postmill.stages.shared.agent_formats.read import Call
from postmill.stages.shared.agent_formats.table import format_json, load_format
from postmill.stages.shared.engine.text import Speaker

_MARK = "zqxmark"
"""Stands for an answer where only what follows it is wanted."""
Messages = list[dict[str, Any]]


class Unwritable(Exception):
    """The template cannot write this conversation."""


class Dialogue:
    """Writes conversations as `tokenize` wrote the prompts, and reads calls in answers."""

    def __init__(self, speaker: Speaker, prompts: Artifact, agent_format: str | None) -> None:
        """agent_format: of calls; None is that of the prompts, or what the template writes. Raises ConfigError (2)."""
        config = prompts.manifest.config
        written = config.get("agent_format")
        if not speaker.template:
            raise ConfigError(f"{prompts.path}: the model has no chat template, so a conversation cannot go on", USAGE)
        self._place, self._speaker = prompts.path, speaker
        self._options = dict(config.get("template_kwargs") or {})
        self._writer = _native.AgentFormat(written, format_json(written)) if written else None
        self.format = agent_format or written or guess_format(speaker.template)
        """Name of the format of calls; empty where none are looked for."""
        if written and load_format(written)["answers"] == "turn":
            raise ConfigError(
                f"{prompts.path}: agent format {written} puts answers of tools inside the assistant's turn, which"
                " rollout cannot do yet; make the prompts with hermes",
                USAGE,
            )

    def calls(self, text: str, tools: Messages | None) -> tuple[str, list[Call]]:
        """What an answer says beside its calls, and the calls. Calls inside of thinking are none."""
        parser = Parser(agent_format=self.format, tools=tools, reasons=True)
        parts = [*parser.push(text), *parser.finish()]
        return "".join(part.content for part in parts), [part.call for part in parts if part.call is not None]

    def start(self, messages: Messages, tools: Messages | None) -> list[int]:
        """Ids of a conversation up to where an answer begins. Raises Unwritable."""
        return self._speaker.ids(self._write(messages, tools, prompt=True), special=False)

    def follow(self, messages: Messages, tools: Messages | None) -> list[int]:
        """Ids behind the last word of an answer: its closing, `messages`, and where the next begins.

        Raises Unwritable.
        """
        told = json.dumps(messages)
        mark = next(mark for number in itertools.count() if (mark := f"{_MARK}{number}x") not in told)
        asked: Messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
        text = self._write([*asked, *messages], None if self._writer else tools, prompt=True)
        if text.count(mark) != 1:
            raise Unwritable("chat template: an answer stands there more than once, or not at all")
        return self._speaker.ids(text.partition(mark)[2], special=False)

    def check_start(self, ids: list[int], messages: Messages, tools: Messages | None) -> None:
        """Raise ArtifactError (78) unless `ids` is how a prompt is written here."""
        if not self.is_written(ids, messages, tools):
            raise ArtifactError(
                f"{self._place}: its prompts were written with another template, date or options than this model's"
                " folder has, so what follows cannot be checked; make them again, or pass --history extend",
                MISMATCH,
            )

    def is_written(self, ids: list[int], messages: Messages, tools: Messages | None) -> bool:
        """Whether the template writes the conversation with the text of these ids. Raises Unwritable."""
        written = self.start(messages, tools)
        return written == ids or self._speaker.decode(written, special=True) == self._speaker.decode(ids, special=True)

    def _write(self, messages: Messages, tools: Messages | None, *, prompt: bool) -> str:
        options = self._options | {"add_generation_prompt": prompt}
        try:
            if self._writer is None:
                return self._speaker.written(messages, tools=tools, **options)
            written = self._writer.write(json.dumps(messages), json.dumps(tools) if tools else "")
            return self._speaker.written(json.loads(written), **options)
        except ValueError as error:  # NativeError is one
            raise Unwritable(str(error)) from None
