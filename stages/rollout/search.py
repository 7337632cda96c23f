"""Search: many ways to go on with an answer are tried, a guide judges what stands there so far, the best are kept.

Best-of-n judges whole answers. Beam search keeps the best of all ways of a prompt after each step; DVTS does so in
several trees that know nothing of each other; tree search (`mcts.py`) goes back to where most is to be expected. All
prompts take a step together. What every try cost is counted: methods are to be compared at equal numbers of sampled
tokens. Source of DVTS:
<https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute>.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from postmill.io.digest import digest_bytes
from postmill.stages.rollout.mcts import grow
from postmill.stages.rollout.rows import Branch, Ended, Sample
from postmill.stages.rollout.search_options import Search
from postmill.stages.rollout.tries import Ask, Guide, Path, Tries


class Searcher:
    """One search over all prompts."""

    def __init__(self, cfg: Search, ended: Ended, guide: Guide, *, max_new_tokens: int, seed: int) -> None:
        self._cfg, self._ended, self._guide = cfg, ended, guide
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self.tries = self._tries([], lambda *_: {})

    def _tries(self, prompts: Sequence[dict[str, Any]], ask: Ask) -> Tries:
        return Tries(
            prompts,
            ask,
            self._ended,
            self._guide,
            step_tokens=self._cfg.step_tokens,
            max_new_tokens=self._max_new_tokens,
            seed=self._seed,
        )

    @property
    def sampled_tokens(self) -> int:
        """Of all tries."""
        return sum(self.tries.tokens)

    def run(self, prompts: Sequence[dict[str, Any]], ask: Ask) -> list[list[Path]]:
        """The paths that each prompt ends with, the best first."""
        cfg = self._cfg
        self.tries = self._tries(prompts, ask)
        kept = grow(self.tries, cfg, len(prompts)) if cfg.search == "mcts" else self._narrow(len(prompts))
        found: list[list[Path]] = [[] for _ in prompts]
        for path in sorted(kept, key=_rank):
            found[path.prompt].append(path)
        return found

    def _narrow(self, num_prompts: int) -> list[Path]:
        """All ways a step further, and the best of them, until nothing goes on."""
        cfg = self._cfg
        num_trees = cfg.beams if cfg.search == "dvts" else 1
        kept = [Path(prompt=p, tree=t, key=f"{t}") for p in range(num_prompts) for t in range(num_trees)]
        width = cfg.width if cfg.search == "dvts" else cfg.beams * cfg.width
        while live := [path for path in kept if not path.finish]:
            ways = [(path, f"{path.key}.{number}") for path in live for number in range(width)]
            tried = self.tries.take(ways, is_step=cfg.search != "best_of_n")
            kept = self._select([path for path in kept if path.finish] + tried)
            width = cfg.width
        return kept

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
        start = len(prompt["input_ids"])
        text = self.tries.text(path)
        score = path.score if math.isfinite(path.score) else None
        branch = Branch(
            start=start,
            ids=prompt["input_ids"] + path.ids,
            runs=_runs(path, start) if path.ids else [],
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
            columns={"label": [is_right for _, is_right in path.steps]} if path.steps else {},
        )


def _runs(path: Path, start: int) -> list[tuple[int, int, int]]:
    """The tokens of an answer, step by step where its steps are known."""
    ends = [end for end, _ in path.steps] or [len(path.ids)]
    return [(start + first, start + end, 0) for first, end in itertools.pairwise([0, *ends])]


def _rank(path: Path) -> tuple[bool, float, str]:
    """The best first; of equal ones the one that was tried first. A path that failed comes last."""
    return path.error is not None, -path.score, path.key
