"""The command: files in, an artifact out, the same bytes for any number of threads, every row accounted for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from postmill.io.ledger import read_ledger
from postmill.io.manifest import load_artifact, verify_files
from postmill.io.schemas import TOKENS_V1
from postmill.io.table import StreamReader, TableReader

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level ChatML tokenizer of 259 ids."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("model")
    vocab = {token: i for i, token in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    return folder


def postmill(*argv: object, code: int = 0, **options: Any) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [sys.executable, "-m", "postmill.cli.main", *map(str, argv)],
        env=os.environ | {"PYTHONPATH": str(ROOT / ".path")} if (ROOT / ".path").is_dir() else None,
        capture_output=True,
        timeout=120,
        check=False,
        **options,
    )
    assert done.returncode == code, done.stderr.decode()
    return done


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    return {"query": question, "response": answer} | columns


def rows_of(artifact: Path) -> list[dict[str, Any]]:
    return [row for batch in TableReader(artifact / "tokens.arrow", TOKENS_V1) for row in batch.to_pylist()]


def test_an_artifact_with_its_numbers(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [chat(f"q{i}", "answer" * (i % 7 + 1), id=i) for i in range(50)])
    out = tmp_path / "tokens"
    assert postmill("tokenize", data, "-m", model, "-o", out).stdout.decode().strip() == str(out)
    artifact = load_artifact(out, ("tokens",))
    assert verify_files(artifact) == []
    manifest, rows = artifact.manifest, rows_of(out)
    assert manifest.counts is not None and manifest.counts.kept == 50 == len(rows)
    metrics = manifest.metrics
    assert metrics["tokens"] == sum(row["length"] for row in rows)
    assert metrics["trained_tokens"] == sum(row["trained_tokens"] for row in rows) == metrics["weight_sum"]
    assert sum(metrics["length_histogram"].values()) == 50 == metrics["encode_calls"]
    assert metrics["stop_ids"] == [257] and manifest.versions["engine"] and manifest.digests["template"]
    assert [json.loads(row["extra"])["id"] for row in rows] == list(range(50))
    assert postmill("tokenize", data, "-m", model, "-o", out).returncode == 0
    assert load_artifact(out).digest == artifact.digest


def test_any_number_of_threads_makes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    rows = [chat(f"question {i} " * (i % 50), "x" * (i % 900 + 1)) for i in range(4000)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    digests = set()
    for threads in (1, 2, 8):
        out = tmp_path / f"t{threads}"
        postmill("tokenize", data, "-m", model, "-o", out, "--threads", threads, "--max-length", 700)
        digests.add(load_artifact(out).digest)
    assert len(digests) == 1
    counts = load_artifact(out).manifest.counts
    assert counts is not None and counts.is_balanced() and counts.rows_in == 4000 and counts.dropped["too_long"] > 500


def test_the_ledger_names_every_row_that_did_not_pass(model: Path, tmp_path: Path) -> None:
    rows = [chat("a", "b"), {"nonsense": 1}, chat("c", "d" * 100), chat("e", "f")]
    data = write_rows(tmp_path / "a.jsonl", rows)
    out = tmp_path / "t"
    refused = postmill("tokenize", data, "-m", model, "-o", out, code=65)
    assert b"a.jsonl:2" in refused.stderr and not out.exists()
    postmill("tokenize", data, "-m", model, "-o", out, "--on-bad-row", "skip", "--max-length", 60)
    lines = read_ledger(out).to_pylist()
    assert [(line["line"], line["action"]) for line in lines] == [(2, "dropped"), (3, "dropped")]
    assert lines[1]["reason"] == "too_long" and lines[1]["tokens_before"] > 100
    argv = ("tokenize", data, "-m", model, "-o", tmp_path / "u", "--on-bad-row", "skip", "--max-dropped", "1%")
    assert b"--max-dropped" in postmill(*argv, code=65).stderr
    assert not (tmp_path / "u").exists()


def test_a_stream_holds_what_the_artifact_holds(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [chat(f"q{i}", f"a{i}") for i in range(9)])
    postmill("tokenize", data, "-m", model, "-o", tmp_path / "t")
    stream = postmill("tokenize", data, "-m", model).stdout
    reader = StreamReader(pa.BufferReader(stream), TOKENS_V1)
    piped = [row for batch in reader for row in batch.to_pylist()]
    assert piped == rows_of(tmp_path / "t")
    assert reader.trailer is not None and reader.trailer.manifest.key == load_artifact(tmp_path / "t").manifest.key


def test_weighing_again_encodes_nothing_and_equals_fresh_tokens(model: Path, tmp_path: Path) -> None:
    answers = ["Action: go", "plain", "<think>\n\n</think>\n\nhi", "a <tool_call>{}</tool_call> b", "Observation: 9"]
    rows = []
    for i in range(60):
        messages = [
            {"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, ["q", answers[i % 5]] * 2, strict=True)
        ]
        rows.append({"messages": messages})
    data = write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "mine.json").write_text('{"[aeiou]+": [0.5]}', encoding="utf-8")
    postmill("tokenize", data, "-m", model, "-o", tmp_path / "plain")
    for number, spec in enumerate(["last_round+react", "hermes+ignore_empty_think", "all", "default+mine.json"]):
        argv = ("-m", model, "--loss-scale", spec, "--rules", tmp_path / "mine.json", "-o")
        postmill("tokenize", data, *argv, tmp_path / f"f{number}")
        postmill("tokenize", tmp_path / "plain", *argv, tmp_path / f"w{number}")
        assert rows_of(tmp_path / f"w{number}") == rows_of(tmp_path / f"f{number}")
        fresh, again = load_artifact(tmp_path / f"f{number}").manifest, load_artifact(tmp_path / f"w{number}").manifest
        assert again.metrics["encode_calls"] == 0 < fresh.metrics["encode_calls"]
        assert again.metrics["weight_sum"] == pytest.approx(fresh.metrics["weight_sum"], rel=1e-12)
    refused = postmill("tokenize", tmp_path / "plain", "-m", model, "--thinking", "strip", "-o", tmp_path / "x", code=2)
    assert b"thinking: cannot change without encoding again" in refused.stderr


def test_duplicates_go_and_the_split_is_a_partition(model: Path, tmp_path: Path) -> None:
    rows = [chat(f"q{i % 40}", "a", id=i) for i in range(100)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    postmill("tokenize", data, "-m", model, "-o", tmp_path / "d", "--dedup")
    assert [row["line"] for row in rows_of(tmp_path / "d")] == list(range(1, 41))
    counts = load_artifact(tmp_path / "d").manifest.counts
    assert counts is not None and counts.dropped == {"duplicate": 60}
    sides = []
    for side in ("train", "validation"):
        postmill("tokenize", data, "-m", model, "-o", tmp_path / side, "--val-ratio", 0.25, "--split", side)
        sides.append({row["line"] for row in rows_of(tmp_path / side)})
    assert sides[0] | sides[1] == set(range(1, 101)) and not sides[0] & sides[1] and 10 <= len(sides[1]) <= 40


def test_masks_that_cannot_be_meant_stop_the_run(model: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": False}]
    data = write_rows(tmp_path / "a.jsonl", [{"messages": messages}] * 3 + [chat("a", "b")])
    refused = postmill("tokenize", data, "-m", model, "-o", tmp_path / "t", code=65)
    assert b"3 of 4 rows have nothing to train on" in refused.stderr
    (tmp_path / "empty.jsonl").write_text("\n\n", encoding="utf-8")
    assert (
        b"no rows" in postmill("tokenize", tmp_path / "empty.jsonl", "-m", model, "-o", tmp_path / "t", code=65).stderr
    )


def test_options_are_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [chat("a", "b")])
    for argv, message in [
        (("--loss-scale", "hermse"), b"pass --rules"),
        (("--truncation", "right"), b"pass --max-length N"),
        (("--segments", "ms-swift"), b"loss_rules ms-swift"),
        (("--template-name", "tool_use"), b"no chat template"),
    ]:
        assert message in postmill("tokenize", data, "-m", model, "-o", tmp_path / "t", *argv, code=2).stderr
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "tokenizer.model").write_bytes(b"x")
    assert (
        b"tokenizer.json" in postmill("tokenize", data, "-m", tmp_path / "slow", "-o", tmp_path / "t", code=66).stderr
    )


def test_changing_anything_changes_the_key(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [chat("a", "b")])
    template = tmp_path / "other.jinja"
    template.write_text(TEMPLATE.replace("{{ m.content }}", "{{ m.content }}!"), encoding="utf-8")
    keys = []
    for number, argv in enumerate([(), ("--loss-scale", "all"), ("--chat-template", template), ("--max-length", 99)]):
        postmill("tokenize", data, "-m", model, "-o", tmp_path / str(number), *argv)
        keys.append(load_artifact(tmp_path / str(number)).manifest.key)
    assert len(set(keys)) == 4


def test_tokenize_loads_neither_torch_nor_pandas_nor_what_computes(tmp_path: Path, model: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [chat("q", "a")])
    argv = [str(tmp_path / "rows.jsonl"), "-m", str(model), "-o", str(tmp_path / "tokens")]
    program = (
        f"import sys; from postmill.cli.main import dispatch; dispatch('tokenize', {argv!r});"
        " slow = ('torch', 'transformers', 'pandas', 'pyarrow.compute', 'importlib.metadata', 'tomllib');"
        " print([m for m in slow if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_stale_native_part_is_named() -> None:
    from postmill.io.errors import ConfigError
    from postmill.stages.tokenize.core import refusals

    def older(data: bytes, *, template: str) -> None: ...

    with pytest.raises(ConfigError, match=r"older than this source tree .*; run make setup"), refusals():
        older(b"", template="", plain=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"), refusals():
        older()  # type: ignore[call-arg]
