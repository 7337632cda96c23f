"""Asking an engine for many replies: faults of the engine are found, and a run that died goes on where it was."""

from pathlib import Path

import msgspec
import pytest
from engine_laws import requests

from postmill.io.errors import ConfigError, StageError
from postmill.stages.protocol import Out
from postmill.stages.rollout.config import STAGE
from postmill.stages.shared.engine.ask import ask_all
from postmill.stages.shared.engine.protocol import Reply, Request, Sampling
from postmill.stages.shared.engine.stub import Faults, StubEngine

SAMPLING = Sampling(max_new_tokens=6, stop_ids=frozenset({2, 3, 4}))
ASKED = requests([[5, 9], [3, 1], [5, 9], [7], [4], [8, 3, 10]] * 4)


def ask(folder: Path, engine: StubEngine, asked: list[Request] = ASKED) -> dict[str, Reply]:
    out = Out(STAGE, "key", folder / "out", None, None)
    return ask_all(engine, asked, SAMPLING, out=out, name="replies.jsonl", what="answers")


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(dropped=frozenset({"k0002"})), "answered 7 of 8 requests, or others: k0002"),
        (Faults(doubled=frozenset({"k0002"})), "answered 9 of 8 requests"),
        (Faults(not_a_number=frozenset({"k0002"})), "k0002 cannot be: a log-prob of nan"),
        (Faults(ignores_stop_ids=True), "cannot be: it goes on after"),
        (Faults(too_long=True), "cannot be: 7 tokens, expected 1 to 6"),
        (Faults(dies_at=0), "gone"),
    ],
)
def test_an_engine_that_errs_stops_the_run(tmp_path: Path, faults: Faults, message: str) -> None:
    with pytest.raises(StageError, match=message):
        ask(tmp_path, StubEngine([Path("own")], faults))


def test_pictures_are_not_sent_to_an_engine_that_reads_none(tmp_path: Path) -> None:
    """Its answers would be about the text alone, and nothing would say so."""
    asked = [msgspec.structs.replace(ASKED[0], inputs=dict)]
    with pytest.raises(ConfigError, match="is given no pictures or sounds"):
        ask(tmp_path, StubEngine([Path("own")]), asked)


def test_an_answer_that_says_it_ended_elsewhere_is_refused(tmp_path: Path) -> None:
    class Liar(StubEngine):
        def answer(self, batch: list[Request], sampling: Sampling) -> list[Reply]:
            return [msgspec.structs.replace(r, finish="length") for r in super().answer(batch, sampling)]

    with pytest.raises(StageError, match="and it says length"):
        ask(tmp_path, Liar([Path("own")]))


def test_a_refused_request_is_an_answer_of_its_own(tmp_path: Path) -> None:
    replies = ask(tmp_path, StubEngine([Path("own")], Faults(refused=frozenset({"k0002"}))))
    assert [key for key, reply in replies.items() if reply.error] == ["k0002"]
    assert len(replies) == len(ASKED)


def test_a_run_whose_engine_died_goes_on_to_the_same_answers(tmp_path: Path) -> None:
    whole = ask(tmp_path / "whole", StubEngine([Path("own")]))
    with pytest.raises(StageError, match="gone"):
        ask(tmp_path / "cut", StubEngine([Path("own")], Faults(dies_at=2)))
    rest = StubEngine([Path("own")], Faults(dies_at=1))  # one batch is left, so it never dies
    assert ask(tmp_path / "cut", rest) == whole
