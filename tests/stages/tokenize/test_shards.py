"""Shards that several processes make are joined to the artifact of one machine, to the byte."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizer

from postmill.cli.stage_command import run
from postmill.io.errors import ArtifactError, ConfigError
from postmill.stages.tokenize import sources
from postmill.stages.tokenize.config import STAGE

LINES = 300
CHUNK_BYTES = 2048
"""So that these lines are several chunks."""
OPTIONS = ("--max-length", "40", "--threads", "1", "-q")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    tiny_tokenizer.write_tokenizer(folder / "base")
    (folder / "base" / "config.json").write_text("{}")
    rows = [{"query": "q" * (n % 5), "response": "in there" if n % 3 else "in " * 40} for n in range(LINES)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "open_sources", partial(sources.open_sources, chunk_bytes=CHUNK_BYTES))


def tokenize(world: Path, output: str, *more: str) -> Path:
    words = (world / "rows.jsonl", "-m", world / "base", "-o", world / output, *OPTIONS, *more)
    assert run(STAGE, [str(word) for word in words]) == 0
    return world / output


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the one that says when and where."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


@pytest.mark.parametrize("options", [(), ("--dedup",), ("--for", "prompt"), ("--val-ratio", "0.3")])
def test_any_shards_give_the_bytes_of_one_machine(world: Path, options: tuple[str, ...]) -> None:
    name = "".join(options).strip("-") or "plain"
    whole = content(tokenize(world, f"{name}-one", *options))
    for mine in (3, 1):  # the second is missing: what nobody made is made by the run that commits
        tokenize(world, f"{name}-three", *options, "--shard", f"{mine}/3")
        assert not (world / f"{name}-three").exists(), "a shard commits nothing"
    work = world / f"{name}-three.checkpoints"
    assert len(list(work.iterdir())) == 2
    assert content(tokenize(world, f"{name}-three", *options)) == whole
    assert not work.exists(), "shards that are joined are removed"


def test_the_run_that_commits_reads_shards_in_place_of_encoding(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from postmill.stages.tokenize import run as module

    for mine in (1, 2):
        tokenize(world, "read", "--shard", f"{mine}/2")
    real = module.make_encoder

    class Deaf:
        """An encoder that encodes nothing."""

        def __init__(self, *args: Any) -> None:
            self._real = real(*args)

        def __getattr__(self, name: str) -> Any:
            assert name != "encode_chunk"
            return getattr(self._real, name)

    monkeypatch.setattr(module, "make_encoder", Deaf)
    tokenize(world, "read")


def test_shards_of_other_options_are_not_taken(world: Path) -> None:
    tokenize(world, "other", "--system", "Be brief.", "--shard", "1/1")
    assert content(tokenize(world, "other")) == content(tokenize(world, "other-plain"))


def test_a_damaged_shard_is_named(world: Path) -> None:
    tokenize(world, "bad", "--shard", "1/1")
    [path] = (world / "bad.checkpoints").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="shard is damaged; remove it and make it again"):
        tokenize(world, "bad")
    assert not (world / "bad").exists()
    path.unlink()
    tokenize(world, "bad")


def test_what_cannot_be_shared_is_refused(world: Path) -> None:
    for wrong in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(ConfigError, match="expected part I of N"):
            tokenize(world, "no", "--shard", wrong)
    from postmill.stages.pack.config import STAGE as PACK

    with pytest.raises(ConfigError, match="--shard"):
        run(PACK, ["tokens", "-o", "no", "--row-tokens", "8", "--shard", "1/2"])
    tokens = tokenize(world, "some")
    with pytest.raises(ConfigError, match="weighed again in one go"):
        run(STAGE, [str(tokens), "-m", str(world / "base"), "-o", str(world / "no"), "--shard", "1/2", "-q"])
