"""Stages as functions, and what they make in the hands of other libraries: equal to commands and to our own loop."""

import json
import pickle
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
import tiny_tokenizer

import postmill
from postmill.io.errors import ArtifactError, ConfigError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("door")
    pytest.importorskip("torch")
    tiny_model.write_model(folder / "base", vocab_size=263)
    (folder / "base" / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.write_tokenizer(folder / "base")
    rows = [{"query": f"q{i}", "response": "in the " * (i + 1)} for i in range(5)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens = postmill.stage("tokenize", folder / "chats.jsonl", model=folder / "base", output=folder / "tokens")
    postmill.stage("pack", tokens, output=folder / "packed", row_tokens=160)
    return folder


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, postmill; print([n for n in ('torch', 'pyarrow', 'numpy', 'msgspec') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_function_does_what_the_command_does(world: Path) -> None:
    program = [sys.executable, "-P", "-m", "postmill.cli.main"]
    argv = ["tokenize", "chats.jsonl", "-m", "base", "-o", "by-command", "-q"]
    subprocess.run([*program, *argv], cwd=world, check=True, capture_output=True)
    assert postmill.open(world / "by-command").digest == postmill.open(world / "tokens").digest
    again = postmill.stage("tokenize", world / "chats.jsonl", model=world / "base", output=world / "by-command")
    assert again.kind == "tokens" and again.manifest.counts is not None and again.manifest.counts.rows_in == 5
    with pytest.raises(ArtifactError, match=r"loss_scale was 'default', is 'all'"):
        postmill.stage(
            "tokenize", world / "chats.jsonl", model=world / "base", output=world / "by-command", loss_scale="all"
        )
    assert "postmill tokens" in repr(again) and Path(again) == world / "by-command"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("tokenise", {}), "no such stage; did you mean tokenize"),
        (("pack", {"row_token": 3}), "row_token: no such option of Pack; did you mean row_tokens"),
        (("pack", {"row_tokens": 0}), "row_tokens|>= 1"),
        (("pack", {"row_tokens": 8, "tokens": []}), "no tokens given"),
    ],
)
def test_faults_are_errors_of_ours(call: tuple[str, dict[str, Any]], words: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ArtifactError), match=words):
        postmill.stage(call[0], output=tmp_path / "x", **call[1])
    with pytest.raises(ConfigError, match="one input too many"):
        postmill.stage("train", "a", "b", output=tmp_path / "x", model="m")
    assert not (tmp_path / "x").exists()


def test_it_runs_in_another_thread(world: Path) -> None:
    made: list[Any] = []
    given = {"output": world / "in-a-thread", "row_tokens": 160}
    thread = threading.Thread(target=lambda: made.append(postmill.stage("pack", world / "tokens", **given)))
    thread.start()
    thread.join()
    assert [one.digest for one in made] == [postmill.open(world / "packed").digest]


def test_tables_come_as_arrow_and_polars(world: Path) -> None:
    tokens = postmill.open(world / "tokens")
    table = tokens.arrow()
    assert table.num_rows == 5 and table["length"].to_pylist() == [len(ids) for ids in table["input_ids"].to_pylist()]
    polars = pytest.importorskip("polars")
    assert tokens.polars().select(polars.col("trained_tokens").sum()).item() == sum(table["trained_tokens"].to_pylist())
    assert postmill.open(world / "packed").arrow("bins.arrow").num_rows == len(
        postmill.open(world / "packed").dataset()
    )
    with pytest.raises(ConfigError, match=r"no table bin\.arrow; did you mean bins\.arrow"):
        postmill.open(world / "packed").arrow("bin.arrow")


def test_datasets_hold_what_is_trained_on(world: Path) -> None:
    torch = pytest.importorskip("torch")
    tokens, packed = postmill.open(world / "tokens"), postmill.open(world / "packed")
    table = tokens.arrow()
    rows, bins = tokens.dataset(), packed.dataset()
    for index, item in enumerate(rows[i] for i in range(len(rows))):
        assert item["input_ids"].tolist() == table["input_ids"][index].as_py()
        assert int((item["labels"] != -100).sum()) == table["trained_tokens"][index].as_py()
        assert torch.equal(item["labels"] != -100, item["weights"] != 0)
    total = sum(len(item["input_ids"]) for item in map(bins.__getitem__, range(len(bins))))
    assert total == sum(table["length"].to_pylist())
    for item in map(bins.__getitem__, range(len(bins))):
        starts = item["cu_seqlens"][:-1].tolist()
        assert item["position_ids"][starts].tolist() == [0] * len(starts)
        assert item["labels"][starts].tolist() == [-100] * len(starts)
    with pytest.raises(IndexError):
        bins[len(bins)]
    copy = pickle.loads(pickle.dumps(bins))
    assert torch.equal(copy[0]["input_ids"], bins[0]["input_ids"])
    first = [bins[i]["input_ids"].tolist() for i in range(len(bins))]
    bins.set_epoch(1)
    assert sorted(first) == sorted(bins[i]["input_ids"].tolist() for i in range(len(bins)))
    with pytest.raises(ArtifactError, match="so it is unfinished or no artifact"):
        postmill.open(world / "base").dataset()


def our_losses(world: Path, steps: int) -> list[float]:
    """What `train` records on the same bins in the same order, with no warm-up and a full model."""
    run = postmill.stage(
        "train",
        world / "packed",
        model=world / "base",
        output=world / "ours",
        replace=True,
        tuner="full",
        steps=steps,
        bins_per_step=1,
        dtype="float32",
    )
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]


def test_a_loop_of_ones_own_and_trainer_see_the_loss_that_train_sees(world: Path) -> None:
    transformers = pytest.importorskip("transformers")
    [ours] = our_losses(world, 1)
    plain = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"]
    losses = plain(str(world / "packed"), str(world / "base"), 2)
    # one sum in another order, in float32
    assert len(losses) == 2 and losses[0] == pytest.approx(ours, rel=1e-5)
    example = runpy.run_path(str(EXAMPLES / "hf_trainer.py"))
    batch = example["collate"]([postmill.open(world / "packed").dataset()[0]])
    net = transformers.AutoModelForCausalLM.from_pretrained(world / "base")
    assert float(net(**batch, use_cache=False).loss) == pytest.approx(ours, rel=1e-5)
    assert float(net(**batch).loss) != pytest.approx(ours, rel=1e-3), "why the example turns the cache off"
    done = example["main"](str(world / "packed"), str(world / "base"), str(world / "hf"), 3)
    logged = [entry["loss"] for entry in done.state.log_history if "loss" in entry]
    assert len(logged) == 3 and all(np.isfinite(logged)) and not done.model.config.use_cache


def test_trl_takes_the_tokens_as_they_are(world: Path) -> None:
    pytest.importorskip("trl")
    main = runpy.run_path(str(EXAMPLES / "trl_sft.py"))["main"]
    trainer = main(str(world / "tokens"), str(world / "base"), str(world / "trl"), 2)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2 and all(np.isfinite(logged))
    [batch, *_] = list(trainer.get_train_dataloader())
    wanted = {
        tuple(row["labels"].tolist()) for row in map(postmill.open(world / "tokens").dataset().__getitem__, range(5))
    }
    assert tuple(batch["labels"][0].tolist()) in wanted
    packed = postmill.open(world / "packed").datasets()
    assert packed.column_names == ["input_ids", "labels", "seq_lengths"]
    assert [sum(lengths) for lengths in packed["seq_lengths"]] == [len(ids) for ids in packed["input_ids"]]
