"""Harnesses ask a model through a server of ours; what they logged is what the tables have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("torch")

from postmill.io.errors import ConfigError, StageError
from postmill.io.manifest import load_artifact
from postmill.io.schemas import EVAL_ITEMS_V1, EVAL_SCORES_V1
from postmill.io.table import TableReader
from postmill.stages.eval.config import STAGE, Eval
from postmill.stages.eval.harness.harness import Job
from postmill.stages.eval.harness.table import HARNESSES
from postmill.stages.options import make
from postmill.stages.runner import Options, run_stage

ROOT = Path(__file__).parents[3]
ENGINES = ROOT / ".cache" / "engines"
QUESTIONS = [f"What is {n} plus 1?" for n in range(3)]
LOGS = {
    "lm-eval": (
        "logs/tested/samples_sums_2026-11-30T07-00-00.000000.jsonl",
        [
            {
                "doc_id": n,
                "doc": {},
                "target": "0",
                "arguments": {
                    "gen_args_0": {"arg_0": QUESTIONS[n], "arg_1": " 1"},
                    "gen_args_1": {"arg_0": QUESTIONS[n], "arg_1": " 2"},
                },
                "resps": [[["-1.5", "True"]], [["-2.5", "False"]]],
                "filtered_resps": [["-1.5", "True"], ["-2.5", "False"]],
                "filter": "none",
                "metrics": ["acc", "acc_norm"],
                "acc": 1.0,
                "acc_norm": 0.0,
            }
            for n in (2, 0, 1)
        ],
    ),
    "evalscope": (
        "reviews/tested/sums_default.jsonl",
        [
            {
                "index": n,
                "target": [str(n + 1)],
                "messages": [
                    {"role": "user", "content": QUESTIONS[n], "id": f"x{n}"},
                    {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
                ],
                "sample_score": {
                    "score": {
                        "value": {"acc": True, "f1": 0.5},
                        "status": "success",
                        "extracted_prediction": "2",
                    }
                },
            }
            for n in (1, 0, 2)
        ],
    ),
}
INSPECT = {
    "eval": {"task": "sums"},
    "samples": [
        {
            "id": n,
            "epoch": 1,
            "input": QUESTIONS[n],
            "target": str(n + 1),
            "output": {"choices": [{"message": {"role": "assistant", "content": "two"}, "stop_reason": "max_tokens"}]},
            "scores": {"includes": {"value": "C", "answer": "2"}, "by": {"value": {"a": 1, "b": "I", "c": "so"}}},
        }
        for n in range(2)
    ]
    + [
        {
            "id": 2,
            "epoch": 2,
            "input": [{"role": "user", "content": [{"type": "text", "text": QUESTIONS[2]}]}],
            "target": ["3", "three"],
            "error": {"message": "429", "traceback": "..."},
            "scores": {},
        }
    ],
}


def job(folder: Path, name: str, **options) -> Job:
    cfg = make(Eval, harness=name, task="sums", **options)
    return Job(cfg=cfg, tasks=["sums"], url="http://h:1", model="tested", key="secret", folder=folder)


def logged(folder: Path, name: str) -> list:
    if name == "inspect":
        path, text = folder / "logs" / "a.json", json.dumps(INSPECT)
    else:
        place, rows = LOGS[name]
        path, text = folder / place, "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return HARNESSES[name].read(job(folder, name))


def test_each_log_is_read_by_its_own_form(tmp_path):
    found = {name: logged(tmp_path / name, name) for name in HARNESSES}
    first = {name: samples[0] for name, samples in found.items()}
    assert [sample.item_id for sample in found["lm-eval"]] == ["sums-0", "sums-1", "sums-2"]
    assert first["lm-eval"].scores == {"acc": 1.0, "acc_norm": 0.0}
    assert json.loads(first["lm-eval"].prompt) == [[QUESTIONS[0], " 1"], [QUESTIONS[0], " 2"]]
    assert [sample.item_id for sample in found["evalscope"]] == [f"sums_default-{n}" for n in range(3)]
    scores = {"acc": 1.0, "f1": 0.5}
    assert (first["evalscope"].scores, first["evalscope"].output, first["evalscope"].said) == (scores, "two", "2")
    assert first["inspect"].scores == {"includes": 1.0, "by,a": 1.0, "by,b": 0.0}
    assert (first["inspect"].finish, first["inspect"].said) == ("length", "2")
    for name in ("evalscope", "inspect"):
        assert json.loads(first[name].prompt) == [{"role": "user", "content": QUESTIONS[0]}]
    failed = found["inspect"][2]
    assert (failed.item_id, failed.output, failed.error, failed.scores) == ("sums-2.1", None, "429", {})
    assert failed.expected == ["3", "three"]


def test_a_text_of_lm_eval_has_a_number_for_each_way_to_extract(tmp_path):
    row = {
        "doc_id": 0,
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": "2 + 2?", "arg_1": {"until": ["\n"]}}},
        "resps": [["it is 4"]],
        "metrics": ["exact_match"],
    }
    rows = [
        row | {"filter": "strict", "filtered_resps": ["[invalid]"], "exact_match": 0.0},
        row | {"filter": "flexible", "filtered_resps": ["4"], "exact_match": 1.0},
    ]
    path = tmp_path / "logs" / "samples_sums_2026.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    (sample,) = HARNESSES["lm-eval"].read(job(tmp_path, "lm-eval"))
    assert sample.scores == {"exact_match,strict": 0.0, "exact_match,flexible": 1.0}
    assert (json.loads(sample.prompt), sample.output, sample.said) == ("2 + 2?", "it is 4", "[invalid]; 4")


@pytest.mark.parametrize("name", HARNESSES)
def test_keys_are_not_on_the_command_line(name, tmp_path):
    told = job(tmp_path, name, limit=7)
    assert "secret" not in " ".join(HARNESSES[name].command(told)) and "7" in HARNESSES[name].command(told)
    assert "secret" in HARNESSES[name].env(told).values()


def test_what_cannot_be_is_said_before_anything_is_loaded(tmp_path):
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_text("{}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")

    def run(given, **options):
        given = {"tested": [str(model)]} | given
        run_stage(STAGE, make(Eval, harness="inspect", task="sums.py", **options), given, tmp_path / "e", Options())

    with pytest.raises(StageError, match=r"has no inspect_ai.*--harness-python") as caught:
        run({}, harness_python=sys.executable)
    assert caught.value.code == 69
    with pytest.raises(StageError, match="no/such/python: has no inspect_ai"):
        run({}, harness_python="/no/such/python")
    with pytest.raises(ConfigError, match="it has its own rows"):
        run({"data": [f"test={rows}"]})
    with pytest.raises(ConfigError, match="a model or an adapter, or --url"):
        run({"tested": []})
    with pytest.raises(ValueError, match="harness needs task"):
        Eval(harness="inspect")


SUMS = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import exact, includes
from inspect_ai.solver import generate


@task
def sums():
    samples = [Sample(input=f"What is {n} plus 1?", target=str(n + 1), id=f"n{n}") for n in range(3)]
    return Task(dataset=samples, solver=generate(), scorer=[includes(), exact()])
"""


def given_to(name: str, folder: Path) -> list[str]:
    """The task, and what the harness is told beside it."""
    rows = [{"query": text, "response": str(n + 1)} for n, text in enumerate(QUESTIONS)]
    (folder / "default.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if name == "inspect":
        (folder / "sums.py").write_text(SUMS)
        return ["--task", str(folder / "sums.py")]
    if name == "evalscope":
        where = {"general_qa": {"local_path": str(folder), "dataset_id": str(folder), "subset_list": ["default"]}}
        return ["--task", "general_qa", "--harness-argument=--dataset-args", f"--harness-argument={json.dumps(where)}"]
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "default.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{query}}",
        "doc_to_target": "response",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "sums.yaml").write_text(json.dumps(task))
    return ["--task", "sums", "--harness-argument=--include_path", f"--harness-argument={folder}"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", HARNESSES)
def test_the_real_harness_asks_a_folder(name, tmp_path):
    python = ENGINES / name / "bin" / "python"
    if not python.exists():
        pytest.skip("make engines")
    from tiny_chat import write_chat_model

    model = write_chat_model(tmp_path / "base", longest=2048)
    command = [sys.executable, "-P", "-m", "postmill.cli.main", "eval", str(model), "--harness", name]
    command += ["--harness-python", str(python), "--max-new-tokens", "8", "--limit", "2", "-o", str(tmp_path / "e")]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "MODELSCOPE_CACHE": str(tmp_path)}
    given = [*command, *given_to(name, tmp_path)]
    done = subprocess.run(given, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-6000:]
    metrics = load_artifact(tmp_path / "e").manifest.metrics
    assert (metrics["harness"], metrics["num_items"], metrics["num_errors"]) == (name, 2, 0)
    items, scores = (
        pa.Table.from_batches(list(TableReader(tmp_path / "e" / table, schema))).to_pylist()
        for table, schema in (("items.arrow", EVAL_ITEMS_V1), ("scores.arrow", EVAL_SCORES_V1))
    )
    assert len(items) == 2 and all(question in item["prompt"] for question, item in zip(QUESTIONS, items, strict=False))
    assert all(item["output"] for item in items) and {row["item_id"] for row in scores} == {
        item["item_id"] for item in items
    }
    assert scores[0]["expected"] == ["1"]
    again = subprocess.run(given, capture_output=True, text=True, check=False, env=env)
    assert again.returncode == 0 and "up to date" in again.stderr
