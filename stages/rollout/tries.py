"""Ways to go on with an answer: sampled, judged by a guide, and counted. What every search is made of."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from postmill.io.digest import digest_bytes
from postmill.stages.rollout.rows import Ended
from postmill.stages.shared.engine.protocol import Reply, Request

Ask = Callable[[Sequence[Request], int, bool], dict[str, Reply]]
"""Replies by key, to requests with at most so many new tokens; where the third says so, a step's text ends them too."""


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """An answer so far."""

    prompt: int
    """Which of the prompts."""
    tree: int
    """Which of a prompt's trees: they do not compete."""
    key: str
    """Names its way from the root."""
    ids: list[int] = []
    logp: list[float] = []
    finish: str = ""
    """Empty while it can go on."""
    stop_id: int | None = None
    score: float = -math.inf
    error: str | None = None
    steps: list[tuple[int, bool]] = []
    """Where each step ends, in tokens of the answer, and whether an answer that goes on from there is right; only where
    a search found that out."""


Guide = Callable[[Sequence[tuple[dict[str, Any], Path, str]]], list[float]]
"""(prompt's row, path, its text) to numbers, higher is better; -inf where it could not judge."""


class Tries:
    """Ways to go on, sampled and judged, and what they cost."""

    def __init__(
        self,
        prompts: Sequence[dict[str, Any]],
        ask: Ask,
        ended: Ended,
        guide: Guide,
        *,
        step_tokens: int,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        """step_tokens, max_new_tokens: longest step and answer."""
        self._prompts, self._ask, self._ended, self._guide = prompts, ask, ended, guide
        self._step_tokens, self._most, self._seed = step_tokens, max_new_tokens, seed
        self.tokens = [0] * len(prompts)
        """Sampled for each prompt."""
        self.num_judged = 0
        self.num_unjudged = 0

    def take(self, ways: Sequence[tuple[Path, str]], *, is_step: bool) -> list[Path]:
        """Each path, longer by a step or to its end, under a new key; judged."""
        by_room: dict[int, list[tuple[Path, Request]]] = {}
        for path, key in ways:
            left = self._most - len(path.ids)
            room = min(left, self._step_tokens) if is_step else left
            prompt = self._prompts[path.prompt]
            name = f"{prompt['row_id'].hex()}-{key}"
            seed = int(digest_bytes(f"{self._seed}:{name}".encode())[7:23], 16) >> 1
            request = Request(key=name, prompt_ids=prompt["input_ids"] + path.ids, seed=seed)
            by_room.setdefault(room, []).append((msgspec.structs.replace(path, key=key), request))
        found: dict[str, Path] = {}
        for room, asked in sorted(by_room.items()):
            replies = self._ask([request for _, request in asked], room, is_step)
            found |= {r.key: self._longer(path, replies[r.key], is_step=is_step) for path, r in asked}
        tried = [found[f"{self._prompts[path.prompt]['row_id'].hex()}-{key}"] for path, key in ways]
        good = [path for path in tried if path.error is None]
        scores = self._guide([(self._prompts[path.prompt], path, self.text(path)) for path in good])
        self.num_judged += len(scores)
        self.num_unjudged += sum(score == -math.inf for score in scores)
        judged = iter(scores)
        return [path if path.error else msgspec.structs.replace(path, score=next(judged)) for path in tried]

    def _longer(self, path: Path, reply: Reply, *, is_step: bool) -> Path:
        if reply.error is not None:
            return msgspec.structs.replace(path, finish="error", error=reply.error)
        self.tokens[path.prompt] += len(reply.ids)
        ids, stop_id = path.ids + reply.ids, self._ended.stop_id(reply)
        finish = ""
        if stop_id is not None:
            finish = "stop"
        elif not is_step or len(ids) >= self._most:
            finish = "length"
        return msgspec.structs.replace(path, ids=ids, logp=path.logp + reply.logp, finish=finish, stop_id=stop_id)

    def text(self, path: Path) -> str:
        """What the path says so far."""
        return self._ended.speaker.text(path.ids, is_stopped=path.stop_id is not None)
