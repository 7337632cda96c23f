"""Search: many ways to go on with an answer are tried, a guide judges what stands there so far, the best are kept.

Best-of-n judges whole answers. Beam search keeps the best of all ways of a prompt after each step; DVTS does so in
several trees that know nothing of each other. All prompts take a step together. What every try cost is counted: methods
are to be compared at equal numbers of sampled tokens. Source of DVTS:
<https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute>.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from postmill.io.digest import digest_bytes
from postmill.stages.rollout.rows import Branch, Ended, Sample
from postmill.stages.rollout.search_options import Search
from postmill.stages.shared.engine.protocol import Reply, Request

Ask = Callable[[Sequence[Request], int], dict[str, Reply]]
"""Replies by key, to requests with at most so many new tokens; a step's text ends them too."""


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


Guide = Callable[[Sequence[tuple[dict[str, Any], Path, str]]], list[float]]
"""(prompt's row, path, its text) to numbers, higher is better; -inf where it could not judge."""


class Searcher:
    """One search over all prompts."""

    def __init__(self, cfg: Search, ended: Ended, guide: Guide, *, max_new_tokens: int, seed: int) -> None:
        self._cfg, self._ended, self._guide = cfg, ended, guide
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self.sampled_tokens = 0
        """Of all tries."""
        self.num_judged = 0
        self.num_unjudged = 0

    def run(self, prompts: Sequence[dict[str, Any]], ask: Ask) -> list[list[Path]]:
        """The paths that each prompt ends with, the best first."""
        cfg = self._cfg
        num_trees = cfg.beams if cfg.search == "dvts" else 1
        kept = [Path(prompt=p, tree=t, key=f"{t}") for p in range(len(prompts)) for t in range(num_trees)]
        at_root = cfg.width if cfg.search == "dvts" else cfg.beams * cfg.width
        depth = 0
        while live := [path for path in kept if not path.finish]:
            tried = self._step(prompts, live, ask, width=cfg.width if depth else at_root)
            kept = self._select([path for path in kept if path.finish] + tried)
            depth += 1
        found: list[list[Path]] = [[] for _ in prompts]
        for path in sorted(kept, key=_rank):
            found[path.prompt].append(path)
        return found

    def _step(self, prompts: Sequence[dict[str, Any]], live: list[Path], ask: Ask, *, width: int) -> list[Path]:
        by_room: dict[int, list[tuple[Path, Request]]] = {}
        for path in live:
            left = self._max_new_tokens - len(path.ids)
            room = left if self._cfg.search == "best_of_n" else min(left, self._cfg.step_tokens)
            prompt = prompts[path.prompt]
            for number in range(width):
                key = f"{path.key}.{number}"
                name = f"{prompt['row_id'].hex()}-{key}"
                seed = int(digest_bytes(f"{self._seed}:{name}".encode())[7:23], 16) >> 1
                request = Request(key=name, prompt_ids=prompt["input_ids"] + path.ids, seed=seed)
                by_room.setdefault(room, []).append((msgspec.structs.replace(path, key=key), request))
        tried = []
        for room, asked in sorted(by_room.items()):
            replies = ask([request for _, request in asked], room)
            tried += [self._longer(path, replies[request.key]) for path, request in asked]
        texts = [(prompts[path.prompt], path, self._text(path)) for path in tried]
        scores = self._guide([item for item in texts if item[1].error is None])
        judged = iter(scores)
        self.num_judged += len(scores)
        self.num_unjudged += sum(score == -math.inf for score in scores)
        return [path if path.error else msgspec.structs.replace(path, score=next(judged)) for path in tried]

    def _longer(self, path: Path, reply: Reply) -> Path:
        if reply.error is not None:
            return msgspec.structs.replace(path, finish="error", error=reply.error)
        self.sampled_tokens += len(reply.ids)
        ids, stop_id = path.ids + reply.ids, self._ended.stop_id(reply)
        finish = ""
        if stop_id is not None:
            finish = "stop"
        elif self._cfg.search == "best_of_n" or len(ids) >= self._max_new_tokens:
            finish = "length"
        return msgspec.structs.replace(path, ids=ids, logp=path.logp + reply.logp, finish=finish, stop_id=stop_id)

    def _text(self, path: Path) -> str:
        return self._ended.speaker.text(path.ids, is_stopped=path.stop_id is not None)

    def _select(self, paths: list[Path]) -> list[Path]:
        """Of each tree's paths the best: all of best-of-n, one of DVTS, `beams` of a beam search."""
        if self._cfg.search == "best_of_n":
            return paths
        most = 1 if self._cfg.search == "dvts" else self._cfg.beams
        kept: list[Path] = []
        counts: dict[tuple[int, int], int] = {}
        for path in sorted(paths, key=_rank):
            tree = (path.prompt, path.tree)
            counts[tree] = counts.get(tree, 0) + 1
            kept += [path] if counts[tree] <= most else []
        return kept

    def samples(self, prompts: Sequence[dict[str, Any]], found: list[list[Path]], count: int) -> list[Sample]:
        """The `count` best of each prompt as samples, with their score in the transcript."""
        return [
            self._sample(prompts[path.prompt], number, path)
            for paths in found
            for number, path in enumerate(paths[:count])
        ]

    def _sample(self, prompt: dict[str, Any], number: int, path: Path) -> Sample:
        start, end = len(prompt["input_ids"]), len(prompt["input_ids"]) + len(path.ids)
        text = self._text(path)
        score = path.score if math.isfinite(path.score) else None
        branch = Branch(
            start=start,
            ids=prompt["input_ids"] + path.ids,
            runs=[(start, end, 0)] if path.ids else [],
            logp=path.logp,
            finish=path.finish,
            stop_id=path.stop_id,
            output=text,
        )
        return Sample(
            prompt=prompt,
            number=number,
            seed=int(digest_bytes(f"{self._seed}:{path.key}".encode())[7:23], 16) >> 1,
            messages=prompt["messages"],
            branches=[branch],
            transcript=[{"role": "assistant", "content": text, "score": score}],
            error=path.error,
        )


def _rank(path: Path) -> tuple[bool, float, str]:
    """The best first; of equal ones the one that was tried first. A path that failed comes last."""
    return path.error is not None, -path.score, path.key
