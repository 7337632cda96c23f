"""Text before and after an engine: messages to prompt ids by the model's own chat template, ids to text."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.stages.shared.hf import load_processor, load_tokenizer
from postmill.stages.shared.media.boxes import BoxForm
from postmill.stages.shared.media.prompt import KINDS, said_token

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens after which bytes that are no text are shown as what they are."""


class Speaker:
    """The tokenizer of the last folder that has one."""

    def __init__(self, folders: list[Path]) -> None:
        folder = next((path for path in reversed(folders) if (path / "tokenizer.json").is_file()), folders[0])
        self._folder = folder
        self._tokenizer = load_tokenizer(folder)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The token that ends a text, if the tokenizer names one."""
        found: int | None = self._tokenizer.eos_token_id
        return frozenset() if found is None else frozenset({found})

    @property
    def about(self) -> dict[str, Any]:
        """The tokenizer's special texts and its template, for clients that write prompts themselves."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return {name: getattr(self._tokenizer, name, None) for name in names} | {"chat_template": self.template or None}

    @property
    def first_id(self) -> int | None:
        """What stands before a text that begins with nothing: the token that begins texts, else the one that ends
        them."""
        found: int | None = self._tokenizer.bos_token_id
        return self._tokenizer.eos_token_id if found is None else found

    @property
    def template(self) -> str:
        """The chat template's source; empty if there is none."""
        found = self._tokenizer.chat_template
        return found if isinstance(found, str) else ""

    @property
    def num_tokens(self) -> int:
        """Tokens that the tokenizer knows."""
        return len(self._tokenizer)

    @property
    def backend(self) -> Any | None:
        """The tokenizer of the tokenizers library, if it is one of them."""
        return getattr(self._tokenizer, "backend_tokenizer", None)

    def special_token(self, text: str) -> int | None:
        """The token that a text is, if it is a special one: it stands for itself, not for its letters."""
        known = self._tokenizer.added_tokens_decoder.items()
        return next((token for token, added in known if added.special and added.content == text), None)

    def prompt_ids(self, messages: list[dict[str, Any]], **options: Any) -> list[int] | str:
        """The conversation up to where the answer begins, or why it cannot be had.

        A model without a template reads the last message as text. options: what the template is given beside messages.
        """
        from jinja2.exceptions import TemplateError

        if not self._tokenizer.chat_template:
            ids: list[int] = self._tokenizer(messages[-1]["content"]).input_ids
            return ids
        try:
            encoded = self._tokenizer.apply_chat_template(
                messages, **({"add_generation_prompt": True} | options), return_dict=True
            )
        except TemplateError as error:
            return f"chat template: {error}"
        return list(encoded["input_ids"])

    def written(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The conversation as the template writes it, as text. Raises ValueError where it cannot."""
        from jinja2.exceptions import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(messages, **options, tokenize=False)
        except TemplateError as error:
            raise ValueError(f"chat template: {error}") from None
        return text

    def picture_prompt(self, messages: list[dict[str, Any]], **options: Any) -> tuple[list[int], dict[str, Any]] | str:
        """The conversation up to where the answer begins, and what the model reads of its pictures; or why not.

        messages: their contents are lists of parts (`stages/shared/media/prompt.py`), with pictures as PIL has them.
        """
        from jinja2.exceptions import TemplateError

        processor = self._processor
        if type(processor).__name__ == "WhisperProcessor":
            return _to_transcribe(processor, messages)
        if not getattr(processor, "chat_template", None):
            return "the model has no chat template for pictures"
        has_pictures = any(part["type"] in KINDS for message in messages for part in message["content"])
        if has_pictures and (token := said_token(messages, self._media_tokens)):
            return f"a text says {token}, which stands for a picture; remove it"
        given = {"add_generation_prompt": True} | options
        try:
            made = processor.apply_chat_template(
                messages, **given, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except TemplateError as error:
            return f"chat template: {error}"
        except ValueError as error:
            return f"pictures: {error}"
        inputs = {name: value for name, value in made.items() if name not in ("input_ids", "attention_mask")}
        return made["input_ids"][0].tolist(), inputs if has_pictures else {}

    def hear(self, data: bytes, place: str) -> Any:
        """Samples of a sound as the model hears them. `place` is what the message calls it.

        Raises ArtifactError (65) for one that is damaged, or longer than the model hears; for a model that is deaf.
        """
        from postmill.stages.shared.media.sound import decode_sound, resample  # which load torch

        extractor = getattr(self._processor, "feature_extractor", None) if self.reads_pictures else None
        if extractor is None:
            raise ArtifactError(f"{place}: the model hears no sounds; ask one that does", BAD_DATA)
        samples, rate = decode_sound(data, place)
        heard = resample(samples, rate, extractor.sampling_rate)
        if len(heard) > extractor.n_samples:
            length, most = len(heard) / extractor.sampling_rate, extractor.n_samples / extractor.sampling_rate
            raise ArtifactError(f"{place}: has {length:.1f} s, the model hears {most:.0f} s; cut it", BAD_DATA)
        return heard

    @property
    def _media_tokens(self) -> list[str]:
        """Texts that only pictures may write."""
        found = {name: value for name, value in vars(self._processor).items() if name.endswith("_token")}
        return [value for value in found.values() if isinstance(value, str)]

    @property
    def reads_pictures(self) -> bool:
        """Whether the folder has a processor. Its template may read nothing but lists of parts."""
        names = ("processor_config.json", "preprocessor_config.json")
        return any((self._folder / name).is_file() for name in names)

    @functools.cached_property
    def boxes(self) -> BoxForm | None:
        """How the model writes boxes; None for one that does not."""
        return BoxForm.of(self._folder) if self.reads_pictures else None

    @functools.cached_property
    def _processor(self) -> Any:
        return load_processor(self._folder)

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text; `special`: with those that the tokenizer puts around one."""
        found: list[int] = self._tokenizer(text, add_special_tokens=special).input_ids
        return found

    def pair_ids(self, first: str, second: str) -> list[int]:
        """Tokens of two texts that are read together, with a newline where the tokenizer puts nothing between them."""
        know = self._tokenizer.num_special_tokens_to_add
        if know(pair=True) == know(pair=False):
            return self.ids(f"{first}\n{second}")
        found: list[int] = self._tokenizer(first, second).input_ids
        return found

    def text(self, ids: list[int], *, is_stopped: bool) -> str:
        """What the ids say, special tokens left out; `is_stopped`: the last one only ended the answer."""
        text: str = self._tokenizer.decode(ids[:-1] if is_stopped else ids, skip_special_tokens=True)
        return text

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """What the ids say, with special tokens or without."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=not special)
        return text

    def piece(self, token: int) -> str:
        """One token by itself, as text; part of a character is a replacement character."""
        return self.decode([token], special=True)

    def token_bytes(self, token: int) -> list[int]:
        """The bytes of one token: exact for byte-level vocabularies, those of its text for others."""
        name: str = self._tokenizer.convert_ids_to_tokens(token) or ""
        letters = _byte_letters()
        if token not in self._special and name and all(letter in letters for letter in name):
            return [letters[letter] for letter in name]
        return list(self.piece(token).encode())

    @property
    def _special(self) -> frozenset[int]:
        return frozenset(self._tokenizer.added_tokens_decoder)


def _byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte, the other way round."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


class TextStream:
    """Ids one at a time to text that never takes anything back.

    Bytes of a character that is not whole yet wait, and so does what may become a stop text. What all calls return, put
    together, is the text of the answer before the first stop text.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = tuple(text for text in stop if text)
        self._ids: list[int] = []
        self._shown, self._whole = 0, 0
        self._held = ""
        self.stopped: str | None = None
        """The stop text that was met; nothing comes after it."""

    def push(self, token: int) -> str:
        """What one more token adds."""
        if self.stopped is not None:
            return ""
        self._ids.append(token)
        return self._release(self._next(is_last=False), is_last=False)

    def finish(self) -> str:
        """What was waiting, once no token comes any more."""
        return "" if self.stopped is not None else self._release(self._next(is_last=True), is_last=True)

    def _next(self, *, is_last: bool) -> str:
        """New text. Two tokens before are decoded again, since some tokenizers write a token by its neighbours."""
        before = self._decode(self._ids[self._shown : self._whole])
        now = self._decode(self._ids[self._shown :])
        is_whole = not now.endswith(_REPLACEMENT) or len(self._ids) - self._whole >= _LONGEST_CHARACTER
        if not is_whole and not is_last:
            return ""
        self._shown, self._whole = self._whole, len(self._ids)
        return now[len(before) :]

    def _release(self, new: str, *, is_last: bool) -> str:
        text = self._held + new
        stops = [(at, order, stop) for order, stop in enumerate(self._stop) if (at := text.find(stop)) >= 0]
        if stops:
            at, _, self.stopped = min(stops)
            self._held = ""
            return text[:at]
        longest = 0 if is_last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)


def _to_transcribe(processor: Any, messages: list[dict[str, Any]]) -> tuple[list[int], dict[str, Any]] | str:
    """What Whisper's decoder begins with, and what its encoder hears; or why not."""
    parts = [part for message in messages for part in message["content"]]
    if [part["type"] for part in parts] != ["audio"]:
        return "Whisper writes down one sound and reads no text: a question is <audio> alone"
    hears = processor.feature_extractor
    made = hears(parts[0]["audio"], sampling_rate=hears.sampling_rate, return_tensors="pt")
    return list(processor.tokenizer.prefix_tokens), {"input_features": made["input_features"]}
