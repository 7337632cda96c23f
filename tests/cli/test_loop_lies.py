"""Engines that lie to a loop are found in the batch in which they do: other weights, a cache of old ones, log-probs
that are not of what was asked.

What else an engine can get wrong with one batch (requests left out, answered twice, numbers that are none) is found
where it is asked: tests/stages/shared/engine/test_ask.py. Weights that are never replaced and another temperature are
in test_loop.py.
"""

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

from tiny_loop import RECIPE, write_world  # noqa: E402

from postmill.cli import loop  # noqa: E402
from postmill.io.errors import ArtifactError, StageError  # noqa: E402
from postmill.stages.shared.engine.local import LocalEngine  # noqa: E402
from postmill.stages.shared.engine.protocol import Loaded  # noqa: E402

FUNCTION = "def letters(row):\n    return sum(map(ord, row.output)) % 7 / 6\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    recipe = RECIPE.replace("rank = 4", 'tuner = "full"').replace("prompts = 3", "prompts = 2")
    return write_world(tmp_path_factory.mktemp("lies"), recipe, FUNCTION, num_asks=3, more="keep = 4")


def run(world, name):
    words = [world / "loop.toml", world / "asks.jsonl", "-m", world / "base", "-o", world / name, "--threads", "1"]
    return loop.run([str(word) for word in (*words, "-q")])


def rounds_done(folder):
    return len(list(folder.glob("rounds/*/done")))


def test_an_engine_that_loads_an_old_file_is_found(world, monkeypatch):
    """In the third round it reads the weights of the first again, and says so."""
    real, given = LocalEngine.load, []

    def old(self, folders):
        given.append(folders)
        return real(self, given[0] if len(given) == 3 else folders)

    monkeypatch.setattr(LocalEngine, "load", old)
    with pytest.raises(StageError, match=r"the engine held the tensors .* of a round before") as caught:
        run(world, "old")
    assert (caught.value.code, rounds_done(world / "old")) == (78, 2)


def test_an_engine_that_answers_from_a_cache_of_old_weights_is_found(world, monkeypatch):
    """It has the new tensors and says so; what it computes with is what it kept."""
    real, given = LocalEngine.load, []

    def stale(self, folders):
        given.append(folders)
        new = real(self, folders)
        if len(given) > 1:
            real(self, given[-2])
        self.loaded = Loaded(digest=new.digest, proof="memory")
        return self.loaded

    monkeypatch.setattr(LocalEngine, "load", stale)
    with pytest.raises(ArtifactError, match="its log-probs differ from this model's") as caught:
        run(world, "stale")
    assert (caught.value.code, rounds_done(world / "stale")) == (78, 1)


def test_an_engine_whose_log_probs_are_renormalised_is_found(world, monkeypatch):
    """It draws from the likeliest tokens alone, and tells how likely each is among those."""
    real = LocalEngine.answer

    def narrow(self, batch, sampling):
        replies = real(self, batch, msgspec.structs.replace(sampling, top_k=3))
        return [msgspec.structs.replace(reply, logp=reply.sampled_logp) for reply in replies]

    monkeypatch.setattr(LocalEngine, "answer", narrow)
    with pytest.raises(ArtifactError, match="its log-probs differ from this model's") as caught:
        run(world, "narrow")
    assert (caught.value.code, rounds_done(world / "narrow")) == (78, 0)
