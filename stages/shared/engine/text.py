"""Text before and after an engine: messages to prompt ids by the model's own chat template, ids to text."""

from pathlib import Path
from typing import Any

from postmill.stages.shared.hf import load_tokenizer


class Speaker:
    """The tokenizer of the last folder that has one."""

    def __init__(self, folders: list[Path]) -> None:
        folder = next((path for path in reversed(folders) if (path / "tokenizer.json").is_file()), folders[0])
        self._tokenizer = load_tokenizer(folder)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The token that ends a text, if the tokenizer names one."""
        found: int | None = self._tokenizer.eos_token_id
        return frozenset() if found is None else frozenset({found})

    def prompt_ids(self, messages: list[dict[str, Any]]) -> list[int] | str:
        """The conversation up to where the answer begins, or why it cannot be had.

        A model without a template reads the last message as text.
        """
        from jinja2.exceptions import TemplateError

        if not self._tokenizer.chat_template:
            ids: list[int] = self._tokenizer(messages[-1]["content"]).input_ids
            return ids
        try:
            encoded = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        except TemplateError as error:
            return f"chat template: {error}"
        return list(encoded["input_ids"])

    def text(self, ids: list[int], *, is_stopped: bool) -> str:
        """What the ids say, special tokens left out; `is_stopped`: the last one only ended the answer."""
        text: str = self._tokenizer.decode(ids[:-1] if is_stopped else ids, skip_special_tokens=True)
        return text
