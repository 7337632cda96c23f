"""Property tests are the same on every run, and slow machines do not fail them. `--oracles FILE`: see `agreement`."""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from agreement import FOUND
from hypothesis import HealthCheck, settings

# Read when torch is loaded: threads that wait for others turn round and round otherwise, on cores that others need. The
# tests of merge took four times as much processor time where two cores were busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile(
    "postmill", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("postmill")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--oracles", type=Path, help="write the largest differences to oracles of losses to this file")


@pytest.fixture(scope="module", autouse=True)
def loaded_modules_are_no_garbage() -> Iterator[None]:
    """What lives between two files, mostly modules, is left out of collections: with torch and all tests loaded, each
    takes half a second otherwise, and children forked here would copy all of it."""
    gc.collect()
    gc.freeze()
    yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--oracles")
    if path is not None:
        path.write_text(json.dumps(FOUND, indent=1, sort_keys=True) + "\n")
