"""Each engine obeys each law, and each law finds the lie that it is there for."""

from collections.abc import Callable
from pathlib import Path

import engine_laws
import pytest
from engine_laws import LAWS, Subject

from postmill.stages.shared.engine.stub import Faults, StubEngine

OWN, OTHER = [Path("own")], [Path("other")]


def stub(faults: Faults | None = None) -> Subject:
    engine = StubEngine(OWN, faults)
    return Subject(engine=engine, logits=engine.logits, own=OWN, other=OTHER)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import tiny_model

    from postmill.stages.shared.engine.local import LocalEngine

    work = tmp_path_factory.mktemp("conformance")
    own, other = tiny_model.write_model(work / "own"), tiny_model.write_model(work / "other", seed=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(own, dtype=torch.float32).eval()

    def logits(ids: list[int]) -> list[float]:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1].tolist()

    return Subject(engine=LocalEngine([own], batch_size=64), logits=logits, own=[own], other=[other])


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_stub_obeys(law: Callable[[Subject], None]) -> None:
    law(stub())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_transformers_obeys(law: Callable[[Subject], None], local: Subject) -> None:
    law(local)


@pytest.mark.parametrize(
    ("faults", "law"),
    [
        (Faults(dropped=frozenset({"k0002"})), engine_laws.every_request_is_answered_once),
        (Faults(doubled=frozenset({"k0002"})), engine_laws.every_request_is_answered_once),
        (Faults(too_long=True), engine_laws.answers_end_where_they_should),
        (Faults(ignores_stop_ids=True), engine_laws.answers_end_where_they_should),
        (Faults(not_a_number=frozenset({"k0002"})), engine_laws.log_probs_are_the_models),
        (Faults(renormalised=True), engine_laws.log_probs_are_the_models),
        (Faults(one_generator=True), engine_laws.a_seed_decides_whatever_is_beside_it),
        (Faults(wrong_temperature=True), engine_laws.tokens_are_drawn_as_often_as_they_are_likely),
        (Faults(refused=frozenset({"k0002"})), engine_laws.prompts_that_cannot_be_answered_harm_no_other),
        (Faults(keeps_weights=True), engine_laws.loading_changes_the_answers_and_loading_back_restores_them),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_lie_is_found(faults: Faults, law: Callable[[Subject], None]) -> None:
    with pytest.raises(AssertionError):
        law(stub(faults))
