"""`--sample-prompts`: what the model answers to a few prompts while it is trained, in `samples.jsonl`.

The weights that are being trained answer, in padded batches of the engine that `rollout` and `eval` have. Answers are
greedy, so they are functions of the weights; nothing that training draws is touched.
"""

from pathlib import Path
from typing import Any

import msgspec
import torch

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.json_file import numbered_lines
from postmill.stages.progress import Progress
from postmill.stages.shared.engine.choose import choose
from postmill.stages.shared.engine.live import Live
from postmill.stages.shared.engine.padded import PaddedRows
from postmill.stages.shared.engine.protocol import Reply, Request, Sampling
from postmill.stages.shared.engine.text import Speaker
from postmill.stages.shared.hf import quiet_libraries
from postmill.stages.train.checkpoint import SAMPLES

_RUNNING = 16


class _Line(msgspec.Struct, frozen=True):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


class Samples:
    """The prompts, and what was answered so far."""

    def __init__(self, prompts: Path, model: Path, *, max_tokens: int, before: bytes | None, folder: Path) -> None:
        """model: folder with tokenizer and chat template; before: lines that a checkpoint held; folder: where lines can
        be watched. Raises ArtifactError (65) for a file of prompts that are none."""
        self._speaker = Speaker([model])
        self._prompts = _read(prompts, self._speaker)
        self._lines = bytearray(before or b"")
        self._path = folder / SAMPLES
        stop_ids = frozenset(self._speaker.eos_ids)
        self._sampling = Sampling(max_new_tokens=max_tokens, temperature=0.0, stop_ids=stop_ids)
        folder.mkdir(parents=True, exist_ok=True)
        self._path.write_bytes(self._lines)

    def take(self, model: Any, step: int, dtype: torch.dtype) -> None:
        """Answer all prompts with `model` as it is after `step` updates."""
        device = next(model.parameters()).device
        kernel, was_training = model.config._attn_implementation, model.training
        model.eval()
        try:
            with quiet_libraries():
                model.set_attn_implementation("sdpa")  # the kernels of training know of no cache
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
                replies = self._answer(model, str(device))
        finally:
            with quiet_libraries():
                model.set_attn_implementation(kernel)
            model.train(was_training)
        for number, (asked, _) in enumerate(self._prompts):
            reply = replies[str(number)]
            said = self._speaker.text(list(reply.ids), is_stopped=reply.finish == "stop")
            line = {"step": step, "prompt": asked, "answer": said, "finish": reply.finish, "tokens": len(reply.ids)}
            self._lines += msgspec.json.encode(line) + b"\n"
        self._path.write_bytes(self._lines)

    def _answer(self, model: Any, device: str) -> dict[str, Reply]:
        rows = PaddedRows(model, device, max_running=_RUNNING)
        for number, (_, ids) in enumerate(self._prompts):
            request = Request(key=str(number), prompt_ids=ids, seed=0)
            rows.add(Live(request, self._sampling, None))
        replies: dict[str, Reply] = {}
        while len(replies) < len(self._prompts):
            Progress.beat()
            ready = rows.step()
            tokens = [] if ready.logits_BV is None else choose(ready.logits_BV, [live.row() for live in ready.lives])
            for live, token in zip(ready.lives, tokens, strict=True):
                reply = live.take(token)
                if reply is not None:
                    rows.remove(live)
                    replies[live.request.key] = reply
        return replies

    def kept(self) -> bytes:
        """For a checkpoint and the result."""
        return bytes(self._lines)


def _read(path: Path, speaker: Speaker) -> list[tuple[Any, list[int]]]:
    """What is asked, and its ids."""
    found: list[tuple[Any, list[int]]] = []
    for number, line in numbered_lines(path.read_bytes()):
        place = f"{path}:{number}"
        try:
            row = msgspec.json.decode(line, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f'{place}: {error}; write {{"prompt": "..."}} a line', BAD_DATA) from None
        if (row.prompt is None) == (row.messages is None):
            raise ArtifactError(f"{place}: expected prompt, or messages, and not both", BAD_DATA)
        messages = row.messages if row.messages is not None else [{"role": "user", "content": row.prompt}]
        ids = speaker.prompt_ids(messages)
        if isinstance(ids, str):
            raise ArtifactError(f"{place}: {ids}", BAD_DATA)
        found.append((row.prompt if row.messages is None else messages, ids))
    if not found:
        raise ArtifactError(f'{path}: no prompts in it; write {{"prompt": "..."}} a line', BAD_DATA)
    return found
