"""How many samples a minute can a loop hand on if its engine took no time: rollout, reward and pack, through the disk?

Every round is what `postmill loop` does between an engine and an update: 128 prompts are asked 8 times each, answers
are written and committed, read and scored by worker processes, written and committed, planned into bins. The engine is
a stub whose answers are made beforehand, in this process. There is no rival: others hand samples on in memory, unseen.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from harness import Case, Rival

from postmill.io.digest import digest_bytes
from postmill.io.manifest import load_artifact
from postmill.io.rollouts import read_rollouts
from postmill.stages.options import make
from postmill.stages.pack.config import STAGE as PACK
from postmill.stages.pack.config import Pack
from postmill.stages.reward.config import STAGE as REWARD
from postmill.stages.reward.config import Reward
from postmill.stages.rollout.config import STAGE as ROLLOUT
from postmill.stages.rollout.config import Rollout
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.engine.options import Wanted
from postmill.stages.shared.engine.protocol import About, Loaded, Reply, Request, Sampling
from postmill.stages.tokenize.config import STAGE as TOKENIZE
from postmill.stages.tokenize.config import Tokenize

PROMPTS, SAMPLES, LONGEST = 128, 8, 256


class Ready:
    """An engine whose answers lie ready: pieces of one list of letters, at a place that the request's seed names."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._ids = rng.integers(64, 90, 4096 + LONGEST).tolist()
        self._logp = (-rng.exponential(1.0, 4096 + LONGEST)).tolist()
        self.loaded = Loaded(digest=digest_bytes(b"ready"), proof="claimed")
        can = frozenset({"logp", "seed", "repeatable"})
        self.about = About(kind="ready", versions={}, can=can, max_tokens=None, stop_ids=frozenset())

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        return [requests[start : start + 256] for start in range(0, len(requests), 256)]

    def answer(self, batch: list[Request], sampling: Sampling) -> list[Reply]:
        return [self._reply(request, sampling) for request in batch]

    def _reply(self, request: Request, sampling: Sampling) -> Reply:
        at = request.seed % 4096
        logp = self._logp[at : at + sampling.max_new_tokens]
        ids = self._ids[at : at + sampling.max_new_tokens]
        return Reply(key=request.key, ids=ids, logp=logp, sampled_logp=logp, raw_logp=logp, finish="length")


class Stub(msgspec.Struct, frozen=True, tag="transformers"):
    """How `rollout` opens it: in the place of the engine of that name."""

    def open(self, wanted: Wanted) -> AbstractContextManager[Any]:
        return nullcontext(Ready())


class Spool:
    """Rounds, each with other prompts."""

    def __init__(self, folder: Path, num_rounds: int, answer_tokens: int) -> None:
        import tiny_model
        from tiny_tokenizer import write_tokenizer

        self._folder, self._num_rounds, self._answer_tokens, self._runs = folder, num_rounds, answer_tokens, 0
        self._base = tiny_model.write_model(folder / "base", vocab_size=263)
        (self._base / "chat_template.jinja").unlink()
        write_tokenizer(self._base)
        asks = [
            {"messages": [{"role": "user", "content": f"question {number}"}], "solution": "A"}
            for number in range(PROMPTS * num_rounds)
        ]
        (folder / "asks.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in asks))
        self._make(TOKENIZE, Tokenize(for_="prompt"), "prompts", data=["asks.jsonl"], model=["base"])

    def _make(self, stage: Any, cfg: Any, name: str, **inputs: list[str]) -> None:
        ports = {port: [str(self._folder / path) for path in paths] for port, paths in inputs.items()}
        ports |= {"functions": inputs["functions"]} if "functions" in inputs else {}
        run_stage(stage, cfg, ports, self._folder / name, Options(threads=2))

    def run(self) -> None:
        """All rounds."""
        self._runs += 1
        for number in range(self._num_rounds):
            name = f"{self._runs}-{number}-"
            cfg = make(
                Rollout,
                samples=SAMPLES,
                max_new_tokens=self._answer_tokens,
                prompts_from=number * PROMPTS,
                prompts_count=PROMPTS,
                seed=self._runs,
            )
            cfg = msgspec.structs.replace(cfg, engine=Stub())
            self._make(ROLLOUT, cfg, f"{name}rollout", prompts=["prompts"], policy=["base"])
            self._make(
                REWARD, Reward(max_failed=0), f"{name}reward", rollouts=[f"{name}rollout"], functions=["repetition"]
            )
            given = {"tokens": [f"{name}rollout"], "rewards": [f"{name}reward"]}
            self._make(PACK, Pack(row_tokens=4096), f"{name}packed", **given)

    def check(self) -> dict[str, Any]:
        """Raises unless every sample of every round was scored, once."""
        self.run()
        seen: set[bytes] = set()
        for number in range(self._num_rounds):
            made = load_artifact(self._folder / f"{self._runs}-{number}-rollout")
            seen |= {row["row_id"] for row in read_rollouts([made], ["row_id"])}
            rewarded = load_artifact(self._folder / f"{self._runs}-{number}-reward")
            metrics = rewarded.manifest.metrics
            assert metrics["prompts"] == PROMPTS and metrics["functions"][0]["missing"] == 0, metrics
        assert len(seen) == PROMPTS * SAMPLES * self._num_rounds, len(seen)
        return {"samples": len(seen), "rounds": self._num_rounds}


def cases(smoke: bool) -> Iterator[Case]:
    num_rounds = 1 if smoke else 8
    for answer_tokens in [8] if smoke else [16, LONGEST]:
        with tempfile.TemporaryDirectory() as folder:
            spool = Spool(Path(folder), num_rounds, answer_tokens)
            yield Case(
                f"spool, answers of {answer_tokens}",
                f"samples a second through rollout, reward and pack, {PROMPTS} prompts x {SAMPLES} a round",
                "samples",
                [Rival("postmill", spool.run, float(PROMPTS * SAMPLES * num_rounds))],
                check=spool.check,
                repeats=1 if smoke else 3,
            )
