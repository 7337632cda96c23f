"""The walk over configs: paths, short names, choices, effects, and the way to plain data and back."""

from typing import Annotated

import msgspec
import pytest

from postmill.cli.flags import Given, resolve
from postmill.io.errors import ConfigError
from postmill.stages.options import (
    changed,
    changes,
    from_plain,
    json_schema,
    keyed,
    make,
    options,
    short_names,
    to_plain,
)
from postmill.stages.spec import Choice, Effect
from postmill.stages.train.config import Train
from postmill.stages.train.tuners.full import Full
from postmill.stages.train.tuners.lora import Lora
from postmill.stages.train.tuners.table import TUNERS


def test_options_follow_what_is_chosen():
    assert {"tuner", "lora.rank", "batch.micro_bins", "warmup"} <= set(options(Train))
    full = options(Train, {"tuner": "full", "schedule": "wsd"})
    assert "wsd.decay" in full
    assert not any(path.startswith(("lora.", "cosine.")) for path in full)


def test_a_last_part_that_one_option_has_is_its_name():
    names = short_names(options(Train))
    assert (names["rank"], names["lr"], names["lora.rank"]) == ("lora.rank", "lr", "lora.rank")


def test_configs_from_names_and_back():
    cfg = make(Train, tuner="lora", rank=8, micro_bins=2, schedule="wsd", decay=0.2, lr=1e-3)
    assert (cfg.tuner.rank, cfg.batch.micro_bins, cfg.schedule.decay, cfg.peak_lr) == (8, 2, 0.2, 1e-3)
    assert from_plain(Train, to_plain(cfg)) == cfg
    assert to_plain(cfg)["tuner"]["type"] == "lora"
    assert make(Train, tuner=Lora(rank=8)).tuner == Lora(rank=8)
    assert changed(cfg, tuner="full").tuner == Full()
    assert changed(cfg, rank=4).tuner == Lora(rank=4)
    assert changed(cfg, rank=4).schedule == cfg.schedule


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tuner": "full", "rank": 8}, "rank: is an option of --tuner lora"),
        ({"tuner": "lorra"}, "no such name; did you mean lora?"),
        ({"rnak": 8}, "did you mean rank?"),
    ],
)
def test_what_does_not_fit_is_said(given, words):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?").replace(".", r"\.")):
        make(Train, **given)


def test_only_what_changes_the_result_is_keyed():
    plain = to_plain(make(Train, save_every=7, micro_bins=2, shard="fsdp"))
    assert keyed(Train, plain) == keyed(Train, to_plain(Train()))
    assert keyed(Train, to_plain(make(Train, lr=1e-3))) != keyed(Train, to_plain(Train()))
    assert keyed(Train, to_plain(make(Train, tuner="full")))["tuner"] == "full"
    effects = {path: option.effect for path, option in options(Train).items()}
    assert effects["checkpoints.save_every"] is Effect.SAME_BYTES
    assert effects["compute.gradient_checkpointing"] is Effect.LAST_BITS
    assert effects["batch.bins_per_step"] is Effect.ANOTHER_RUN


def test_differences_name_what_makes_another_run():
    before, after = to_plain(Train()), to_plain(make(Train, rank=8, micro_bins=4, seed=1))
    assert changes(Train, before, after) == ["lora.rank was 16, is 8", "seed was 0, is 1"]
    old = before | {"gone": 3}
    assert "gone was 3, is None" in changes(Train, old, after)


def test_a_config_of_another_version_is_refused_by_name():
    with pytest.raises(ConfigError, match="gone: no such option in this version of Train"):
        from_plain(Train, to_plain(Train()) | {"gone": 3})


def test_the_schema_has_groups_and_every_choice():
    members = json_schema(Train)["properties"]
    assert members["tuner"]["enum"] == sorted(TUNERS.table)
    assert members["lora"]["properties"]["rank"]["minimum"] == 1
    assert members["batch"]["properties"]["micro_bins"]["default"] == 1


class Flat(msgspec.Struct, frozen=True, kw_only=True, tag="flat"):
    pass


class Steep(msgspec.Struct, frozen=True, kw_only=True, tag="steep"):
    slope: float = 1.0


SLOPES = Choice(group="postmill.none", table={"flat": f"{__name__}:Flat", "steep": f"{__name__}:Steep"})


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    shape: Annotated[Flat | Steep, SLOPES] = Flat()
    height: int = 0


class Hill(msgspec.Struct, frozen=True, kw_only=True):
    front: Ground = Ground()
    size: int = 1


def test_a_choice_inside_a_group():
    """It is chosen by its path, or by its last part; what was chosen has its options beside the outermost ones."""
    assert list(options(Hill)) == ["front.shape", "front.height", "size"]
    assert "steep.slope" in options(Hill, {"front.shape": "steep"})
    hill = make(Hill, shape="steep", slope=2.0)
    assert hill == Hill(front=Ground(shape=Steep(slope=2.0)))
    assert make(Hill, **{"front.shape": Steep(slope=2.0)}) == hill
    assert from_plain(Hill, to_plain(hill)) == hill
    assert changed(hill, height=3) == Hill(front=Ground(shape=Steep(slope=2.0), height=3))
    assert changes(Hill, to_plain(Hill()), to_plain(hill)) == [
        "front.shape was 'flat', is 'steep'",
        "steep.slope was None, is 2.0",
    ]
    said = {"shape": [Given("steep", "--shape", True)], "slope": [Given("2", "--slope", True)]}
    assert resolve(Hill, said, "hill") == hill
    with pytest.raises(ConfigError, match=r"is an option of --front\.shape steep; choose that"):
        make(Hill, slope=2.0)
    members = json_schema(Hill)["properties"]
    assert set(members) == {"front", "size", "flat", "steep"}
    assert members["front"]["properties"]["shape"]["enum"] == ["flat", "steep"]
