"""How soon does a stage answer `--help`, against importing what the usual tools import first?"""

import sys
from collections.abc import Iterator
from pathlib import Path

from harness import Case, Rival

from postmill.cli.main import STAGES

POSTMILL = str(Path(sys.executable).with_name("postmill"))


def cases(smoke: bool) -> Iterator[Case]:
    """A case for every stage, as installed; rates are in calls a second."""
    for stage in list(STAGES)[: 1 if smoke else None]:
        yield Case(
            name=stage,
            question=f"`postmill {stage} --help`, whole processes",
            unit="calls/s",
            rivals=[
                Rival("postmill", [POSTMILL, stage, "--help"], 1),
                Rival("import transformers", [sys.executable, "-c", "import transformers"], 1),
                Rival("bare python", [sys.executable, "-c", "pass"], 1),
            ],
            repeats=7,
            packages=("transformers", "msgspec"),
        )
