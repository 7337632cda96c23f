"""Manifests, content keys, atomic commits, locks and the ledger's law."""

import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postmill.io.commit import Staging, remove_artifact
from postmill.io.digest import canonical_json, digest_file, digest_files
from postmill.io.errors import BAD_DATA, EXISTS, INTERNAL, MISMATCH, NO_INPUT, ArtifactError, StageError
from postmill.io.ledger import Ledger, read_ledger
from postmill.io.manifest import Counts, InputEntry, Manifest, content_key, list_files, load_artifact, verify_files


def manifest_of(folder: Path, kind: str = "tokens") -> Manifest:
    return Manifest(kind=kind, stage="test", stage_version=1, key="k", config={}, files=list_files(folder))


def make(target: Path, text: str = "rows", *, replace: bool = False) -> Path:
    with Staging(target) as staging:
        (staging.path / "part").mkdir()
        (staging.path / "part" / "rows.txt").write_text(text)
        staging.commit(manifest_of(staging.path), replace=replace)
    return target


def test_an_artifact_appears_whole_and_nothing_else(tmp_path: Path) -> None:
    artifact = load_artifact(make(tmp_path / "a"), ("tokens",))
    assert verify_files(artifact) == []
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Staging(tmp_path / "a") as staging:
        (staging.path / "rows.txt").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_replaced_unless_asked(tmp_path: Path) -> None:
    target = make(tmp_path / "a", "first")
    with pytest.raises(ArtifactError) as caught:
        make(target, "second")
    assert caught.value.code == EXISTS
    assert (target / "part" / "rows.txt").read_text() == "first"
    make(target, "second", replace=True)
    assert (target / "part" / "rows.txt").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_leftovers_of_a_dead_writer_are_swept_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".a.tmp-dead").mkdir()
    (tmp_path / ".ab.tmp-other").mkdir()
    make(tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".ab.tmp-other", "a"]


def _race(target: str, gate: object, answers: object, name: str) -> None:
    gate.wait()  # type: ignore[attr-defined]
    try:
        with Staging(Path(target)) as staging:
            (staging.path / "rows.txt").write_text(name)
            time.sleep(0.01)
            staging.commit(manifest_of(staging.path))
        answers.put((name, 0))  # type: ignore[attr-defined]
    except ArtifactError as error:
        answers.put((name, error.code))  # type: ignore[attr-defined]


def test_no_half_of_a_removed_artifact_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a")

    def killed(path: Path) -> None:
        (path / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        remove_artifact(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    make(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_of_two_writers_one_wins_and_the_other_is_told(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    for turn in range(40):
        target = tmp_path / f"a{turn}"
        gate, answers = spawn.Barrier(2), spawn.Queue()
        writers = [spawn.Process(target=_race, args=(str(target), gate, answers, name)) for name in "xy"]
        for writer in writers:
            writer.start()
        results = dict(answers.get(timeout=30) for _ in writers)
        for writer in writers:
            writer.join()
        assert sorted(results.values()) == [0, EXISTS]
        winner = next(name for name, code in results.items() if code == 0)
        assert (target / "rows.txt").read_text() == winner
        assert verify_files(load_artifact(target)) == []


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (lambda a: (a / "manifest.json").unlink(), NO_INPUT, "unfinished"),
        (shutil.rmtree, NO_INPUT, "no such artifact"),
        (lambda a: (a / "part" / "rows.txt").unlink(), BAD_DATA, "missing"),
        (lambda a: (a / "part" / "rows.txt").write_text("longer than before"), BAD_DATA, "bytes"),
        (lambda a: (a / "manifest.json").write_text("{"), BAD_DATA, "not a manifest"),
        (lambda a: (a / "manifest.json").write_text('{"format": 99}'), MISMATCH, "format 99"),
        (lambda a: (a / "manifest.json").write_text('{"format": 1, "kind": 3}'), BAD_DATA, "not a manifest"),
    ],
)
def test_a_damaged_artifact_is_refused(tmp_path: Path, damage: object, code: int, says: str) -> None:
    target = make(tmp_path / "a")
    damage(target)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=says) as caught:
        load_artifact(target)
    assert caught.value.code == code


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    target = make(tmp_path / "a")
    text = (target / "manifest.json").read_text().replace("part/rows.txt", "../b/rows.txt")
    (target / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="outside"):
        load_artifact(target)


def test_verify_finds_content_and_strangers(tmp_path: Path) -> None:
    target = make(tmp_path / "a", "rows")
    (target / "part" / "rows.txt").write_text("swor")
    (target / "more.txt").write_text("?")
    faults = verify_files(load_artifact(target))
    assert len(faults) == 2
    assert "content differs" in faults[0]
    assert "not in the manifest" in faults[1]


ENTRIES = [InputEntry("a", "file", "d1"), InputEntry("a", "file", "d2"), InputEntry("b", "file", "d3")]


def test_the_key_changes_with_everything_that_counts() -> None:
    base = content_key("s", 1, {"x": 1, "y": "t"}, ENTRIES)
    others = [
        content_key("t", 1, {"x": 1, "y": "t"}, ENTRIES),
        content_key("s", 2, {"x": 1, "y": "t"}, ENTRIES),
        content_key("s", 1, {"x": 2, "y": "t"}, ENTRIES),
        content_key("s", 1, {"x": 1}, ENTRIES),
        content_key("s", 1, {"x": 1, "y": "t"}, ENTRIES[:2]),
        content_key("s", 1, {"x": 1, "y": "t"}, [ENTRIES[1], ENTRIES[0], ENTRIES[2]]),
    ]
    assert len({base, *others}) == 7


def test_the_key_stays_when_only_order_of_options_or_ports_changes() -> None:
    base = content_key("s", 1, {"x": 1, "y": "t"}, ENTRIES)
    assert content_key("s", 1, {"y": "t", "x": 1}, ENTRIES) == base
    assert content_key("s", 1, {"x": 1, "y": "t"}, [ENTRIES[2], *ENTRIES[:2]]) == base


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False), max_size=5))
def test_canonical_json_does_not_depend_on_order(value: dict[str, object]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_digests_follow_content_not_place(tmp_path: Path) -> None:
    big = bytes(range(256)) * 40_000  # over the limit from which files are mapped
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(big)
    assert digest_files({"f": tmp_path / "a" / "f"}) == digest_files({"f": tmp_path / "b" / "f"})
    (tmp_path / "b" / "f").write_bytes(big[:-1] + b"!")
    assert digest_file(tmp_path / "a" / "f") != digest_file(tmp_path / "b" / "f")


PLACE = {"row_id": b"0123456789abcdef", "source": 0, "line": 7}


def test_the_ledger_counts_and_keeps_what_it_is_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.arrow")
    ledger.keep(3)
    ledger.drop(PLACE, "too_long")
    ledger.drop({**PLACE, "row_id": None, "line": 8}, "bad_json")
    counts = ledger.finish()
    assert counts == Counts(rows_in=5, kept=3, dropped={"bad_json": 1, "too_long": 1})
    rows = read_ledger(tmp_path).to_pylist()
    assert [(row["line"], row["reason"]) for row in rows] == [(7, "too_long"), (8, "bad_json")]


def test_a_ledger_that_does_not_balance_is_a_bug_of_ours() -> None:
    ledger = Ledger(None)
    ledger.keep(3)
    ledger.counts.rows_in += 1
    with pytest.raises(StageError) as caught:
        ledger.finish()
    assert caught.value.code == INTERNAL


def test_too_many_dropped_rows_fail_the_stage() -> None:
    ledger = Ledger(None)
    ledger.keep(98)
    ledger.drop(PLACE, "too_long")
    ledger.drop(PLACE, "too_long")
    with pytest.raises(StageError, match=r"2 of 100 rows dropped \(2 too_long\)") as caught:
        ledger.finish(0.01)
    assert caught.value.code == BAD_DATA
    assert ledger.finish(0.02).num_dropped == 2
