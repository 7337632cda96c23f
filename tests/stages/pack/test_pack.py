"""The pack stage: what it keeps, what it refuses, and that equal inputs give equal bytes. Commands run as processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import rollouts_table
from hypothesis import given, settings
from hypothesis import strategies as st
from token_tables import pair_id, random_rows, row, to_batches, write_stream, write_tokens

from postmill.io.errors import ArtifactError, StageError
from postmill.io.ledger import read_ledger
from postmill.io.manifest import load_artifact, verify_files
from postmill.io.packed import BINS, PackedReader
from postmill.io.schemas import BINS_V1
from postmill.io.table import TableWriter
from postmill.stages.pack import run as stage
from postmill.stages.pack.config import STAGE, Pack
from postmill.stages.pack.survey import runs_that_fit
from postmill.stages.runner import Options, run_stage

pytest.importorskip("postmill._native", reason="native module not built")


def pack(folder, rows, out="packed", **config):
    """Pack `rows` from a fresh tokens artifact in `folder`; returns the artifact's path."""
    tokens = folder / "tokens"
    if not tokens.exists():
        write_tokens(tokens, to_batches(rows))
    cfg = Pack(**{"row_tokens": 100} | config)
    run_stage(STAGE, cfg, {"tokens": [str(tokens)]}, folder / out, Options())
    return folder / out


def command(*argv, stdin=None, cwd=None, **env):
    """`postmill ...` as a process."""
    return subprocess.run(
        [sys.executable, "-m", "postmill.cli.main", *map(str, argv)],
        stdin=stdin or subprocess.DEVNULL,
        capture_output=True,
        cwd=cwd,
        env=os.environ | env,
        check=False,
    )


def bins_of(path):
    reader = PackedReader(path)
    return [reader.rows(i).tolist() for i in range(len(reader))]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.sampled_from(["best_fit", "in_order"]),
)
def test_every_row_is_packed_once_or_in_the_ledger(tmp_path_factory, shapes, strategy):
    """Rows of any length, some trained, some labelled: kept + dropped = in, each with its reason, kept rows whole."""
    rows, reasons = [], []
    for number, (length, trained, labelled) in enumerate(shapes):
        spans = [(1, length, 2.0)] if trained and length > 1 else []
        rows.append(row([100 * number + i for i in range(length)], spans, label=1.0 if labelled else None))
        untrained = not spans and not labelled
        reasons.append(
            "empty" if length == 0 else "nothing_to_train" if untrained else "too_long" if length > 30 else ""
        )
    folder = tmp_path_factory.mktemp("pack")
    num_untrained = reasons.count("nothing_to_train")
    if 2 * num_untrained > len(rows) or not any(reason == "" for reason in reasons):
        with pytest.raises(StageError) as caught:
            pack(folder, rows, row_tokens=30, on_long="drop", strategy=strategy)
        assert caught.value.code == 65
        return
    path = pack(folder, rows, row_tokens=30, on_long="drop", strategy=strategy)
    reader = PackedReader(path)
    tokens = [token for i in range(len(reader)) for token in reader.bin(i).input_ids.tolist()]
    kept = [item for item, reason in zip(rows, reasons, strict=True) if not reason]
    assert sorted(tokens) == sorted(token for item in kept for token in item["input_ids"])
    ledger = read_ledger(path).to_pydict()
    assert dict(zip(ledger["line"], ledger["reason"], strict=True)) == {
        number: reason for number, reason in enumerate(reasons, start=1) if reason
    }
    counts = load_artifact(path).manifest.counts
    assert (counts.rows_in, counts.kept) == (len(rows), len(kept))
    assert counts.is_balanced()


def test_metrics_say_what_was_packed(tmp_path):
    rows = random_rows(0, 200)
    metrics = load_artifact(pack(tmp_path, rows)).manifest.metrics
    tokens = sum(item["length"] for item in rows)
    assert metrics["rows"] == 200
    assert metrics["tokens"] == tokens
    assert metrics["trained_tokens"] == sum(item["trained_tokens"] for item in rows)
    assert metrics["weight_sum"] == sum(item["weight_sum"] for item in rows)
    assert metrics["fill"] == round(tokens / 100 / metrics["bins"], 6)
    assert metrics["longest_row"] == max(item["length"] for item in rows)


def test_show_says_how_evenly_bins_divide_over_ranks(tmp_path):
    path = pack(tmp_path, random_rows(0, 200))
    reader = PackedReader(path)
    steps = reader.deal(reader.order(0), 4, 2)[: len(reader) // 8]
    cost = reader.plan.cost[steps].sum(-1)
    worst = float((cost.max(-1) / cost.mean(-1)).max())
    said = command("show", path, "--ranks", "4", "--bins-per-rank", "2").stdout.decode()
    assert said.startswith(f"{len(steps)} steps of 4 ranks with 2 bins each:")
    assert said.endswith(f", {worst:.3f} in the worst step\n") and 1 < worst < 1.5


def pairs(num_pairs, length=10):
    """Chosen and rejected rows of `num_pairs` pairs."""
    return [
        row([10_000 * number + 100 * side + i for i in range(length + side)], pair_id=pair_id(str(number)), side=side)
        for number in range(num_pairs)
        for side in (0, 1)
    ]


@pytest.mark.parametrize("strategy", ["best_fit", "in_order"])
def test_pairs_share_a_bin(tmp_path, strategy):
    """Batches of 7 rows cut pairs in two; they are joined all the same."""
    rows = pairs(20) + random_rows(1, 30)
    bins = bins_of(pack(tmp_path, rows, strategy=strategy))
    for number in range(20):
        assert sum(1 for b in bins if {2 * number, 2 * number + 1} & set(b)) == 1
        [whole] = [b for b in bins if 2 * number in b]
        assert whole.index(2 * number + 1) == whole.index(2 * number) + 1


def test_a_pair_that_does_not_fit_goes_whole(tmp_path):
    rows = pairs(3) + pairs(1, length=60)
    for item in rows[-2:]:
        item["pair_id"] = pair_id("long")
    path = pack(tmp_path, rows, on_long="drop")
    assert read_ledger(path)["line"].to_pylist() == [7, 8]
    assert sorted(r for b in bins_of(path) for r in b) == [0, 1, 2, 3, 4, 5]


def test_a_pair_with_an_untrained_side_goes_whole(tmp_path):
    rows = pairs(3)
    rows[3] = row(rows[3]["input_ids"], [], pair_id=rows[3]["pair_id"], side=1)
    path = pack(tmp_path, rows)
    assert read_ledger(path).select(["line", "reason"]).to_pylist() == [
        {"line": 3, "reason": "nothing_to_train"},
        {"line": 4, "reason": "nothing_to_train"},
    ]


@pytest.mark.parametrize("broken", ["missing", "apart", "twice"])
def test_half_a_pair_is_refused(tmp_path, broken):
    rows = pairs(4)
    if broken == "missing":
        del rows[3]
    elif broken == "apart":
        rows[3], rows[6] = rows[6], rows[3]
    else:
        rows[3]["side"] = 0
    with pytest.raises(ArtifactError, match="source 0 line 3: one side of a pair") as caught:
        pack(tmp_path, rows)
    assert caught.value.code == 65


def test_long_rows_stop_the_stage_unless_asked_to_drop(tmp_path):
    rows = [*random_rows(0, 9, longest=20), row(range(150))]
    with pytest.raises(
        StageError, match=r"1 of 10 rows \(10%\) do not fit in 100 tokens.*source 0 line 10, has 150"
    ) as e:
        pack(tmp_path, rows)
    assert e.value.code == 65
    assert not (tmp_path / "packed").exists()
    path = pack(tmp_path, rows, on_long="drop")
    line = read_ledger(path).to_pylist()
    assert [(item["line"], item["action"], item["reason"], item["tokens_before"]) for item in line] == [
        (10, "dropped", "too_long", 150)
    ]
    with pytest.raises(StageError, match="1 of 10 rows dropped"):
        run_stage(
            STAGE,
            Pack(row_tokens=100, on_long="drop"),
            {"tokens": [str(tmp_path / "tokens")]},
            tmp_path / "strict",
            Options(max_dropped=0.01),
        )


def test_seed_changes_the_order_and_nothing_else(tmp_path):
    rows = random_rows(3, 150)
    one, two = (bins_of(pack(tmp_path, rows, out=f"seed{seed}", seed=seed)) for seed in (1, 2))
    assert one != two
    assert sorted(one) == sorted(two)
    in_order = [bins_of(pack(tmp_path, rows, out=f"next{seed}", seed=seed, strategy="in_order")) for seed in (1, 2)]
    assert in_order[0] == in_order[1]
    assert [i for b in in_order[0] for i in b] == list(range(150))


def test_several_tokens_artifacts_are_one(tmp_path):
    rows = random_rows(4, 60)
    write_tokens(tmp_path / "a", to_batches(rows[:25]))
    write_tokens(tmp_path / "b", to_batches(rows[25:]))
    parts = {"tokens": [str(tmp_path / "a"), str(tmp_path / "b")]}
    run_stage(STAGE, Pack(row_tokens=100), parts, tmp_path / "both", Options())
    whole = pack(tmp_path, rows)
    assert (tmp_path / "both" / BINS).read_bytes() == (whole / BINS).read_bytes()
    one, other = PackedReader(tmp_path / "both"), PackedReader(whole)
    for index in range(len(one)):
        assert one.bin(index).input_ids.tolist() == other.bin(index).input_ids.tolist()


def test_tokens_of_two_tokenizers_are_refused(tmp_path):
    write_tokens(tmp_path / "a", to_batches(random_rows(0, 5)), {"tokenizer": "blake3:aa"})
    write_tokens(tmp_path / "b", to_batches(random_rows(1, 5)), {"tokenizer": "blake3:bb"})
    with pytest.raises(ArtifactError, match="tokenizer is blake3:bb") as caught:
        run_stage(
            STAGE,
            Pack(row_tokens=100),
            {"tokens": [str(tmp_path / "a"), str(tmp_path / "b")]},
            tmp_path / "p",
            Options(),
        )
    assert caught.value.code == 78


def test_a_tokenizer_that_counts_the_first_token_is_refused(tmp_path):
    rows = random_rows(0, 8)
    rows[4] = row([1, 2, 3], [(0, 3, 1.0)], trained_tokens=3)
    with pytest.raises(ArtifactError, match=r"line 5 says 3 trained tokens, its spans have 2") as caught:
        pack(tmp_path, rows)
    assert caught.value.code == 65


def test_such_a_tokenizer_is_refused_in_a_pipe_too(tmp_path):
    rows = random_rows(0, 8)
    rows[4] = row([1, 2, 3], [(0, 3, 1.0)], trained_tokens=3)
    with (tmp_path / "stream").open("wb") as sink:
        write_stream(sink, to_batches(rows))
    with (tmp_path / "stream").open("rb") as source:
        done = command("pack", "-", "-o", tmp_path / "piped", "--row-tokens", 100, stdin=source)
    assert done.returncode == 65
    assert b"line 5 says 3 trained tokens, its spans have 2" in done.stderr
    assert not (tmp_path / "piped").exists()


def test_no_rows_at_all(tmp_path):
    with pytest.raises(StageError, match="0 rows") as caught:
        pack(tmp_path, [])
    assert caught.value.code == 65


def test_a_stream_gives_the_plan_of_the_artifact_and_carries_its_tokens(tmp_path):
    rows = random_rows(5, 80)
    with (tmp_path / "stream").open("wb") as sink:
        write_stream(sink, to_batches(rows))
    with (tmp_path / "stream").open("rb") as source:
        done = command("pack", "-", "-o", tmp_path / "piped", "--row-tokens", 100, "--json", stdin=source)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"
    by_reference = pack(tmp_path, rows)
    assert (tmp_path / "piped" / BINS).read_bytes() == (by_reference / BINS).read_bytes()
    inside = tmp_path / "piped" / "tokens"
    assert (inside / "tokens.arrow").read_bytes() == (tmp_path / "tokens" / "tokens.arrow").read_bytes()
    for path in (tmp_path / "piped", inside):
        assert verify_files(load_artifact(path)) == []
    lineage = command("lineage", tmp_path / "piped")
    assert lineage.returncode == 0, lineage.stderr
    assert b"tokenize" in lineage.stdout
    one, other = PackedReader(tmp_path / "piped"), PackedReader(by_reference)
    for index in range(len(one)):
        assert all((a == b).all() for a, b in zip(one.bin(index), other.bin(index), strict=True))


def test_a_cut_stream_leaves_nothing(tmp_path):
    with (tmp_path / "stream").open("wb") as sink:
        write_stream(sink, to_batches(random_rows(5, 30)))
    whole = (tmp_path / "stream").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut").write_bytes(whole[: int(len(whole) * share)])
        with (tmp_path / "cut").open("rb") as source:
            done = command("pack", "-", "-o", tmp_path / "piped", "--row-tokens", 100, stdin=source)
        assert done.returncode == 76, done.stderr
        assert done.stderr.count(b"\n") == 1
        assert not [path.name for path in tmp_path.iterdir() if "piped" in path.name]


def test_a_stream_together_with_artifacts_is_refused(tmp_path):
    write_tokens(tmp_path / "a", to_batches(random_rows(0, 5)))
    with (tmp_path / "stream").open("wb") as sink:
        write_stream(sink, to_batches(random_rows(5, 30)))
    with (tmp_path / "stream").open("rb") as source:
        done = command("pack", tmp_path / "a", "-", "-o", tmp_path / "p", "--row-tokens", 100, stdin=source)
    assert done.returncode == 2
    assert b"a stream together with artifacts" in done.stderr


def test_same_bytes_for_any_threads_hash_seed_locale_and_folder(tmp_path):
    write_tokens(tmp_path / "tokens", to_batches(random_rows(6, 200)))
    digests = set()
    for number, (threads, hash_seed, locale) in enumerate(
        [(1, "0", "C"), (2, "1", "tr_TR.UTF-8"), (8, "random", "C.UTF-8")]
    ):
        folder = tmp_path / f"folder{number}"
        folder.mkdir()
        (folder / "tokens").symlink_to(tmp_path / "tokens")
        argv = ["pack", "tokens", "-o", "packed", "--row-tokens", 64, "--threads", threads, "--json", "--quiet"]
        done = command(*argv, cwd=folder, PYTHONHASHSEED=hash_seed, LC_ALL=locale, TZ="Asia/Tokyo")
        assert done.returncode == 0, done.stderr
        digests.add(json.loads(done.stdout)["digest"])
    assert len(digests) == 1


def test_done_before_and_another_option(tmp_path):
    write_tokens(tmp_path / "tokens", to_batches(random_rows(6, 20)))
    argv = ["pack", tmp_path / "tokens", "-o", tmp_path / "packed", "--row-tokens"]
    assert command(*argv, 64).returncode == 0
    again = command(*argv, 64)
    assert (again.returncode, b"up to date" in again.stderr) == (0, True)
    assert command(*argv, 65).returncode == 73


def test_proof_finds_a_row_lost_doubled_or_cut(tmp_path):
    """The check that runs in production, against plans spoiled on purpose."""
    survey = stage.Survey(
        np.array([3, 4, 5], np.uint32),
        np.zeros(3, np.bool_),
        np.zeros(3, np.uint8),
        np.zeros(3, np.int64),
        np.full(3, -1),
    )

    class Out:
        dir = tmp_path

    def prove(rows, starts, length, capacity=12):
        writer = TableWriter(tmp_path / BINS, BINS_V1)
        columns = [[rows], [starts], [length], [0], [0.0], [len(rows)], [0.0]]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, BINS_V1, strict=True)]
        writer.write(pa.RecordBatch.from_arrays(arrays, schema=BINS_V1))
        writer.close()
        stage._prove(Pack(row_tokens=capacity), survey, Out())

    prove([2, 1, 0], [0, 5, 9], 12)
    for spoiled, words in [
        (([2, 1], [0, 5], 9), "lost or doubled"),
        (([2, 1, 1], [0, 5, 9], 13, 20), "lost or doubled"),
        (([2, 1, 0], [0, 5, 8], 11), "cut"),
        (([2, 1, 0], [0, 5, 9], 12, 11), "too long"),
    ]:
        with pytest.raises(StageError, match=words) as caught:
            prove(*spoiled)
        assert caught.value.code == 70
    survey.reasons[0] = 2
    with pytest.raises(StageError, match="lost or doubled"):
        prove([2, 1, 0], [0, 5, 9], 12)


def test_config_is_cheap_and_help_names_every_option():
    program = (
        "import postmill.stages.pack.config, sys; print([m for m in ('numpy', 'pyarrow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    text = command("pack", "--help").stdout.decode()
    for name in Pack.__struct_fields__:
        assert f"--{name.replace('_', '-')}" in text


def test_pack_loads_neither_torch_nor_pandas(tmp_path):
    write_tokens(tmp_path / "tokens", to_batches([*random_rows(6, 20), row(range(100))]))
    argv = [str(tmp_path / "tokens"), "-o", str(tmp_path / "packed"), "--row-tokens", "64", "--on-long", "drop"]
    program = (
        f"import sys; from postmill.cli.main import dispatch; dispatch('pack', {argv!r});"
        " print([m for m in ('torch', 'transformers', 'pandas', 'importlib.metadata') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_samples_of_a_prompt_lie_together_as_far_as_they_fit(tmp_path):
    """Eight prompts of six samples of uneven lengths; a bin takes some of a prompt's samples, or several prompts."""
    rng = np.random.default_rng(0)
    rows = [
        rollouts_table.row_of(prompt, sample, "x", num_tokens=int(rng.integers(1, 30)))
        for prompt in range(8)
        for sample in range(6)
    ]
    rollouts_table.write_rollouts(tmp_path / "rollouts", rows)

    def parts(row_tokens, **options):
        """In how many bins each prompt's samples lie."""
        packed = tmp_path / f"packed-{row_tokens}-{len(options)}"
        cfg = Pack(row_tokens=row_tokens, **options)
        run_stage(STAGE, cfg, {"tokens": [str(tmp_path / "rollouts")]}, packed, Options())
        reader = PackedReader(packed)
        bins = [set((reader.rows(index) // 6).tolist()) for index in range(len(reader))]
        assert sorted(np.concatenate([reader.rows(i) for i in range(len(reader))]).tolist()) == [*range(48)]
        return [sum(prompt in some for some in bins) for prompt in range(8)]

    assert parts(256) == [1] * 8
    assert max(parts(256, together=False)) > 1
    lengths = np.array([row["length"] for row in rows]).reshape(8, 6)
    assert all(bins <= -(-2 * int(total) // 40) for bins, total in zip(parts(40), lengths.sum(1), strict=True))


def test_runs_of_a_key_are_cut_where_a_bin_is_full():
    keys, lengths = np.array([7, 7, 7, 7, 9, -1, -1, 9, 9]), np.array([4, 4, 4, 3, 2, 1, 1, 9, 9], np.uint32)
    found = runs_that_fit(keys, lengths, 10)
    assert found.tolist() == [False, True, False, True, False, False, False, False, False]
