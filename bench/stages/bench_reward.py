"""How long does it take to score stored rollouts again: three functions on samples of 64 tokens, as a command?

Each row goes to a worker process and back, and a row that hangs costs itself alone. The rival is the shortest loop that
does the same work without any of that, in the process that has read the table: what the protection costs.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import Case, Rival

from postmill.io.rollouts import ROLLOUTS
from postmill.io.schemas import ROLLOUTS_V1
from postmill.io.table import TableReader

SAMPLES = 8
FUNCTIONS = ("number", "format", "repetition")
LOOP = """
import sys
from pathlib import Path
import msgspec
from postmill.io.manifest import load_artifact
from postmill.io.rollouts import read_rollouts
from postmill.stages.reward.config import Reward
from postmill.stages.reward.functions import BUILT_IN
from postmill.stages.reward.answers import record_of
from postmill.stages.reward.run import _COLUMNS, _TEXTS, _last_branches, _of_sample
options = {"solution": "solution", "max_answer_tokens": 1024, "soft_tokens": 256}
every = read_rollouts([load_artifact(Path(sys.argv[1]))], _COLUMNS + _TEXTS)
rows = [record_of(every[number] | _of_sample(every, number), 0) for number in _last_branches(every).values()]
total = sum(BUILT_IN[name][0](row, options) or 0.0 for name in sys.argv[2:] for row in rows)
Path(sys.argv[1]).with_suffix(".total").write_text(str(total))
"""


def cases(smoke: bool) -> Iterator[Case]:
    from rollouts_table import row_of, write_rollouts

    num_prompts = 16 if smoke else 1250
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        answer = (
            "<think>one word after another, as models write them, and then some more of it</think><answer>{}</answer>"
        )
        rows = [
            row_of(prompt, sample, answer.format(prompt + sample % 3), num_tokens=64, solution=str(prompt))
            for prompt in range(num_prompts)
            for sample in range(SAMPLES)
        ]
        write_rollouts(work / "rollouts", rows)
        count = sum(batch.num_rows for batch in TableReader(work / "rollouts" / ROLLOUTS, ROLLOUTS_V1))
        stage = [sys.executable, "-m", "postmill.cli.main", "reward", str(work / "rollouts"), "--quiet"]
        stage += [word for name in FUNCTIONS for word in ("--func", name)] + ["-o", str(work / "rewards")]

        loop = [sys.executable, "-c", LOOP, str(work / "rollouts"), *FUNCTIONS]

        def check() -> dict[str, float]:
            subprocess.run(stage, check=True, stdout=subprocess.DEVNULL)
            subprocess.run(loop, check=True)
            metrics = json.loads((work / "rewards" / "manifest.json").read_text())["metrics"]
            ours = sum(function["mean"] * count for function in metrics["functions"])
            theirs = float((work / "rollouts.total").read_text())
            assert abs(ours - theirs) < 1e-6 * max(1.0, abs(theirs)), (ours, theirs)
            return {"total score": round(theirs, 6), "rows": count}

        yield Case(
            "score again",
            f"rows a second, {len(FUNCTIONS)} functions on {count} samples, command to artifact",
            "rows",
            [
                Rival(
                    "postmill reward",
                    stage,
                    count,
                    prepare=lambda: shutil.rmtree(work / "rewards", ignore_errors=True),
                ),
                Rival(
                    "a loop without workers", [sys.executable, "-c", LOOP, str(work / "rollouts"), *FUNCTIONS], count
                ),
            ],
            check,
            repeats=1 if smoke else 3,
        )
