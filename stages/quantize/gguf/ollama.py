"""The Modelfile beside a GGUF file: how Ollama renders conversations, and where it stops.

Ollama has templates of its own kind. One is written only if the model's own template, rendered for a few conversations,
says the very same text as the format it stands for; otherwise Ollama looks at the template inside the GGUF file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from postmill.io.json_file import load_json
from postmill.stages.shared.base_model import all_stop_ids
from postmill.stages.shared.hf import load_tokenizer

LONGEST_CONTEXT = 8192
"""Tokens that Ollama is told to keep memory for; models can often read far more than a machine holds."""

Conversation = list[dict[str, str]]


class _Format(NamedTuple):
    """A way of writing conversations: as Ollama's template, and as text."""

    template: str
    render: Callable[[Conversation], str]


def _chatml(conversation: Conversation) -> str:
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in conversation]
    return "".join(turns) + "<|im_start|>assistant\n"


def _llama3(conversation: Conversation) -> str:
    turns = [f"<|start_header_id|>{t['role']}<|end_header_id|>\n\n{t['content']}<|eot_id|>" for t in conversation]
    return "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


_FORMATS = (
    _Format(
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        _chatml,
    ),
    _Format(
        "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>"
        "{{- end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
        _llama3,
    ),
)

_USER, _ANSWER = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4."}
_SYSTEM = {"role": "system", "content": "Be brief."}
_PROBES = (
    [_SYSTEM, _USER],
    [_SYSTEM, _USER, _ANSWER, {"role": "user", "content": "And\nthree?"}],
    [_USER],
    [_USER, _ANSWER, {"role": "user", "content": "Ünïcode, {{ braces }}"}],
)


def find_format(render: Callable[[Conversation], str], begin: str) -> tuple[str, str | None]:
    """Ollama's template for what `render` does, and the system prompt that it puts in by itself; "" if none is it.

    begin: text that the tokenizer puts before every prompt; Ollama adds it by itself.
    """
    for candidate in _FORMATS:
        system = _own_system(render, candidate, begin)
        probes = [([{"role": "system", "content": system}] if system and p[0] == _USER else []) + p for p in _PROBES]
        try:
            same = all(
                render(probe).removeprefix(begin) == candidate.render(said)
                for probe, said in zip(_PROBES, probes, strict=True)
            )
        except Exception:  # a template refuses what it does not know, in its own words
            same = False
        if same:
            return candidate.template, system
    return "", None


def _own_system(render: Callable[[Conversation], str], candidate: _Format, begin: str) -> str | None:
    """The system prompt of a conversation that has none."""
    mark = "\0"
    before, _, after = candidate.render([{"role": "system", "content": mark}, _USER]).partition(mark)
    text = render([_USER]).removeprefix(begin)
    if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
        return text[len(before) : len(text) - len(after)]
    return None


def modelfile(folder: Path, gguf: str, context: int) -> tuple[str, bool]:
    """The text of the Modelfile for the model in `folder`, and whether it has a template."""
    tokenizer = load_tokenizer(folder)
    lines = [f"FROM ./{gguf}"]
    template, system = "", None
    if tokenizer.chat_template:

        def render(conversation: Conversation) -> str:
            text: str = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
            return text

        puts_begin = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        template, system = find_format(render, tokenizer.bos_token if puts_begin else "")
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    if system:
        lines.append(f'SYSTEM """{system}"""')
    stops = sorted(i for i in all_stop_ids([folder]) if i < len(tokenizer))
    lines += [f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(i)}"' for i in stops]
    lines.append(f"PARAMETER num_ctx {min(context, LONGEST_CONTEXT)}")
    lines += [f"PARAMETER {name} {value}" for name, value in _sampling(folder).items()]
    return "\n".join(lines) + "\n", bool(template)


def _sampling(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    said = load_json(path) if path.is_file() else {}
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
    return {ours: said[name] for name, ours in names.items() if isinstance(said.get(name), (int, float))}
