"""How many tokens a CPU-second does the engine make on one thread, against transformers' `generate`?

Greedy, 48 new tokens after 40 of a prompt, reading included, SmolLM2-135M-Instruct in float32. The time that counts is
the processor's, user and system, of this process: the machine is shared, and its clock on the wall says little.
Equality is checked first: each token's log-prob as a model reads prompt and answer, within 1e-4.
"""

import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import Case, Rival

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import assets

PROMPT, NEW = 40, 48


class Clock:
    """Processor seconds of the last run."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self.seconds = work, 0.0

    def __call__(self) -> Any:
        start = time.process_time()
        found = self._work()
        self.seconds = time.process_time() - start
        return found


def cases(smoke: bool) -> Iterator[Case]:
    import torch
    from transformers import AutoModelForCausalLM

    from postmill.stages.shared.engine.local import LocalEngine
    from postmill.stages.shared.engine.protocol import Request, Sampling

    torch.set_num_threads(1)
    folder = assets.smollm2()
    if folder is None:
        yield Case("streams", "", "tokens/cpu-s", [], skip="SmolLM2 cannot be had here")
        return
    engine = LocalEngine([folder], threads=1)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    models = {name: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) for name, dtype in dtypes.items()}
    make = random.Random(0)
    new = 4 if smoke else NEW
    for streams in (1, 8) if smoke else (1, 8, 32):
        prompts = [[make.randrange(1000, 40000) for _ in range(PROMPT)] for _ in range(streams)]

        def ours(prompts: list[list[int]] = prompts) -> Any:
            engine._rows.forget("")  # what was read in the round before is read again
            sampling = Sampling(max_new_tokens=new, temperature=0)
            requests = [Request(key=f"{n}", prompt_ids=ids, seed=0) for n, ids in enumerate(prompts)]
            return engine.answer(requests, sampling)

        def theirs(name: str, prompts: list[list[int]] = prompts) -> Any:
            ids = torch.tensor(prompts)
            return models[name].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )

        def check(prompts: list[list[int]] = prompts, ours: Callable[[], Any] = ours) -> dict[str, Any]:
            worst = 0.0
            for prompt, reply in list(zip(prompts, ours(), strict=True))[:2]:
                with torch.no_grad():
                    logits = models["float32"](torch.tensor([prompt + reply.ids])).logits[0, len(prompt) - 1 : -1]
                logp = logits.log_softmax(-1).gather(1, torch.tensor(reply.ids)[:, None])[:, 0]
                worst = max(worst, float((logp - torch.tensor(reply.raw_logp)).abs().max()))
            assert worst < 1e-4, worst
            return {"largest log-prob difference": worst, "cpu": torch.backends.cpu.get_cpu_capability()}

        clocks = {
            "postmill": Clock(ours),
            "generate float32": Clock(lambda theirs=theirs: theirs("float32")),
            "generate bfloat16": Clock(lambda theirs=theirs: theirs("bfloat16")),
        }
        yield Case(
            name=f"{streams} streams",
            question=f"greedy, {PROMPT} tokens read and {new} made for each of {streams} streams, one thread",
            unit="tokens/cpu-s",
            rivals=[
                Rival(name, clock, streams * new, "processor seconds", seconds=lambda clock=clock: clock.seconds)
                for name, clock in clocks.items()
            ],
            check=check,
            repeats=3,
            packages=("torch", "transformers"),
        )
