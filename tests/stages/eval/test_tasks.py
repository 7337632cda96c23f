"""Benchmarks as files: the numbers are lm-eval's, on rows of our own in the published schemas."""

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch", reason="generation needs torch")
transformers = pytest.importorskip("transformers")

import assets  # noqa: E402
from task_rows import ROWS  # noqa: E402
from tiny_chat import write_chat_model  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.io.schemas import EVAL_CHOICES_V1, EVAL_ITEMS_V1, EVAL_SCORES_V1  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.eval.config import STAGE, Eval  # noqa: E402
from postmill.stages.eval.tasks.task import TASKS, load_task  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402

ROOT = Path(__file__).parents[3]
LM_EVAL = ROOT / ".cache" / "engines" / "lm-eval" / "bin" / "python"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("tasks") / "base", longest=2048)


def write_data(folder: Path, name: str, count: int) -> list[str]:
    """The task's rows as files; how they are passed."""
    folder.mkdir(parents=True, exist_ok=True)
    given = []
    for split, rows in ROWS[name](count).items():
        path = folder / f"{name}_{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        given.append(f"{'test' if split == 'val' else split}={path}")
    return given


def evaluate(model: Path, out: Path, data: list[str], **options):
    task_file = options.pop("task_file", None)
    given = {"tested": [str(model)], "data": data} | ({"task_file": [str(task_file)]} if task_file else {})
    run_stage(STAGE, make(Eval, **options), given, out, Options(threads=1))
    return load_artifact(out).manifest.metrics


def rows(out: Path, name: str, schema: pa.Schema) -> list[dict]:
    return pa.Table.from_batches(list(TableReader(out / name, schema))).to_pylist()


def test_a_choice_is_the_likeliest_text_after_the_prompt(model, tmp_path):
    """By transformers, one text at a time."""
    metrics = evaluate(model, tmp_path / "e", write_data(tmp_path / "data", "arc_easy", 6), task="arc_easy")
    net = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    right = {"acc": [], "acc_norm": []}
    found = rows(tmp_path / "e", "choices.arrow", EVAL_CHOICES_V1)
    for row in ROWS["arc_easy"](6)["test"]:
        logps = []
        for text in row["choices"]["text"]:
            prompt = tokenizer(f"Question: {row['question']}\nAnswer:").input_ids
            ids = prompt + tokenizer(f" {text}").input_ids
            with torch.no_grad():
                logp_TV = net(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(prompt), len(ids))
            logps.append(sum(float(logp_TV[at - 1, ids[at]]) for at in places))
            choice = found.pop(0)
            assert choice["logp"] == pytest.approx(logps[-1], abs=1e-3)
            assert (choice["text"], choice["num_tokens"]) == (text, len(places))
            assert choice["is_greedy"] == all(int(logp_TV[at - 1].argmax()) == ids[at] for at in places)
        gold = "ABCD".index(row["answerKey"])
        right["acc"].append(max(range(4), key=logps.__getitem__) == gold)
        sizes = [len(text) for text in row["choices"]["text"]]
        right["acc_norm"].append(max(range(4), key=lambda at: logps[at] / sizes[at]) == gold)
    assert not found
    for name, verdicts in right.items():
        mean = sum(verdicts) / 6
        assert metrics["metrics"][name]["value"] == pytest.approx(mean)
        spread = sum((verdict - mean) ** 2 for verdict in verdicts)
        assert metrics["metrics"][name]["stderr"] == pytest.approx((spread / 5 / 6) ** 0.5)
    scores = rows(tmp_path / "e", "scores.arrow", EVAL_SCORES_V1)
    assert [row["ok"] for row in scores if row["rule"] == "acc"] == right["acc"]


def test_a_text_is_read_as_the_task_says(model, tmp_path):
    metrics = evaluate(model, tmp_path / "e", write_data(tmp_path / "data", "gsm8k", 3), task="gsm8k", fewshot=2)
    items = rows(tmp_path / "e", "items.arrow", EVAL_ITEMS_V1)
    prompt = json.loads(items[0]["prompt"])
    assert prompt.count("Question:") == 3 and prompt.endswith("How many does she have?\nAnswer:")
    assert "#### " in prompt and json.loads(items[1]["prompt"])[:60] != prompt[:60], "shown rows are drawn anew"
    assert set(metrics["metrics"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    from postmill.stages.eval.tasks.metrics import mark_text
    from postmill.stages.eval.tasks.prompts import Item

    task = load_task("gsm8k")
    item = Item(item_id="0", group="", context="", pairs=[], choices=[], target="1 + 1\n#### 1,018", labels=[])
    for output, strict, flexible in (
        ("so #### 1018", 1, 1),
        ("#### 1,018.", 1, 1),
        ("it is $1,018.", 0, 1),
        ("#### 5 no, 1018", 0, 1),
        ("none", 0, 0),
    ):
        assert [mark.value for mark in mark_text(task, item, output)] == [strict, flexible], output


def test_limits_ask_the_first_rows_in_the_same_words(model, tmp_path):
    data = write_data(tmp_path / "data", "gsm8k", 4)
    evaluate(model, tmp_path / "all", data, task="gsm8k", fewshot=1)
    evaluate(model, tmp_path / "some", data, task="gsm8k", fewshot=1, limit=2)
    whole = rows(tmp_path / "all", "items.arrow", EVAL_ITEMS_V1)
    assert rows(tmp_path / "some", "items.arrow", EVAL_ITEMS_V1) == whole[:2]


def test_rows_come_from_csv_and_parquet_and_name_their_subject(model, tmp_path):
    given = ROWS["ceval"](4)
    lines = [",".join(given["val"][0]), *(",".join(row.values()) for row in given["val"])]
    (tmp_path / "sums_val.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    pq.write_table(pa.Table.from_pylist(given["val"]), tmp_path / "counting_val.parquet")
    data = [f"test={tmp_path / name}" for name in ("sums_val.csv", "counting_val.parquet")]
    metrics = evaluate(model, tmp_path / "e", data, task="ceval", fewshot=0)
    assert set(metrics["groups"]) == {"sums", "counting"}
    assert metrics["groups"]["sums"]["acc"] == metrics["groups"]["counting"]["acc"]
    items = rows(tmp_path / "e", "items.arrow", EVAL_ITEMS_V1)
    assert json.loads(items[0]["prompt"]).startswith("以下是中国关于sums的单项选择题")


def test_every_task_reads_its_rows(model, tmp_path):
    for name in sorted(set(TASKS) & set(ROWS) - {"gsm8k"}):
        metrics = evaluate(model, tmp_path / name, write_data(tmp_path / "data", name, 3), task=name)
        assert metrics["num_items"] == 3 and metrics["num_errors"] == 0
        for found in metrics["metrics"].values():
            assert 0 <= found["value"] <= 1
    elsewhere = {"humaneval", "mbpp", "ifeval", "qa"}  # test_text_tasks.py
    assert set(TASKS) - set(ROWS) - elsewhere == {"cmmlu"}


def test_a_task_of_ones_own_is_a_file(model, tmp_path):
    (tmp_path / "colours.toml").write_text(
        'version = 1\nkind = "choice"\nprompt = "{{ thing }} is"\nchoices = "[\'red\', \'blue\']"\n'
        'target = "0 if red else 1"\nmetrics = ["acc"]\n'
    )
    (tmp_path / "rows.jsonl").write_text('{"thing": "blood", "red": true}\n{"thing": "sky", "red": false}\n')
    data = [f"test={tmp_path / 'rows.jsonl'}"]
    metrics = evaluate(model, tmp_path / "e", data, task_file=tmp_path / "colours.toml")
    assert (metrics["task"], metrics["num_items"]) == ("colours", 2)
    for text, why in (("version = 1", "missing required"), ('kind = "x"', "Invalid enum"), ("a = [", "Invalid value")):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ArtifactError, match=why) as caught:
            evaluate(model, tmp_path / "never", data, task_file=tmp_path / "bad.toml")
        assert caught.value.code == 65


def test_what_cannot_be_is_said_in_one_line(model, tmp_path):
    data = write_data(tmp_path / "data", "arc_easy", 2)
    with pytest.raises(ConfigError, match=r"no such task.*arc_easy"):
        evaluate(model, tmp_path / "never", data, task="arc_eazy")
    with pytest.raises(ConfigError, match="pass --data test=FILE"):
        evaluate(model, tmp_path / "never", [], task="arc_easy")
    with pytest.raises(ConfigError, match="--fewshot 99: train has 8 rows"):
        evaluate(model, tmp_path / "never", data, task="arc_easy", fewshot=99)
    with pytest.raises(ArtifactError, match="test: row 1: the task cannot read it: UndefinedError"):
        evaluate(model, tmp_path / "never", data, task="mmlu", fewshot=0)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "a"}\n{')
    with pytest.raises(ArtifactError, match=r"broken.jsonl:2: "):
        evaluate(model, tmp_path / "never", [f"test={broken}"], task="arc_easy")
    short = write_chat_model(tmp_path / "short", longest=24)
    with pytest.raises(StageError, match="2 of 2 rows could not be asked") as caught:
        evaluate(short, tmp_path / "never", data, task="arc_easy")
    assert caught.value.code == 65


def test_a_server_is_asked_a_task_as_a_folder_is(model, tmp_path):
    """Choices by log-probs of ids from the server's tokenizer, texts by text: every number is that of the folder."""
    pytest.importorskip("uvicorn")
    from http_server import serving

    given = {name: write_data(tmp_path / "data", name, count) for name, count in (("arc_easy", 3), ("gsm8k", 2))}
    with serving(model, name="base", max_new_tokens=300) as server:
        for name, data in given.items():
            fewshot = {"fewshot": 1}
            evaluate(model, tmp_path / name, data, task=name, **fewshot)
            ask = {"tested": [], "data": data}
            cfg = make(Eval, task=name, url=server.url, **fewshot)
            run_stage(STAGE, cfg, ask, tmp_path / f"url-{name}", Options(threads=1))
            metrics = [load_artifact(tmp_path / out).manifest.metrics for out in (name, f"url-{name}")]
            assert metrics[0] == metrics[1]
            tables = [("scores.arrow", EVAL_SCORES_V1)]
            tables += [("choices.arrow", EVAL_CHOICES_V1)] if name == "arc_easy" else []
            for table, schema in tables:
                assert rows(tmp_path / name, table, schema) == rows(tmp_path / f"url-{name}", table, schema)
        outputs = [[row["output"] for row in rows(tmp_path / out, "items.arrow", EVAL_ITEMS_V1)] for out in given]
        asked = [
            [row["output"] for row in rows(tmp_path / f"url-{out}", "items.arrow", EVAL_ITEMS_V1)] for out in given
        ]
        assert outputs == asked


_INCLUDED = {
    "gsm8k": "gsm8k/gsm8k.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "mmlu": "mmlu/default/_default_template_yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "ceval": "ceval/_default_ceval_yaml",
}
_DESCRIPTIONS = {
    "mmlu": "The following are multiple choice questions (with answers) about high school sums.\n\n",
    "ceval": "以下是中国关于ceval的单项选择题，请选出其中的正确答案。\n\n",
}
FEWSHOT = {"gsm8k": 5, "arc_easy": 2, "hellaswag": 1, "winogrande": 1, "mmlu": 5, "ceval": 3}


def write_yaml(folder: Path, data: Path, name: str) -> None:
    """lm-eval's own task over our rows."""
    (home,) = (LM_EVAL.parents[1] / "lib").glob("python3*/site-packages/lm_eval/tasks")
    files = {path.stem.removeprefix(f"{name}_"): str(path) for path in data.glob(f"{name}_*.jsonl")}
    given = {
        "include": str(home / _INCLUDED[name]),
        "task": f"ours_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "num_fewshot": FEWSHOT.get(name, 0),
        "tag": None,
    }
    if "train" not in files:
        given["training_split"] = None
    if name in _DESCRIPTIONS:
        given["description"] = _DESCRIPTIONS[name]
    folder.mkdir(exist_ok=True)
    (folder / f"ours_{name}.yaml").write_text(json.dumps(given), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not LM_EVAL.exists(), reason="make engines")
@pytest.mark.parametrize(
    ("kind", "names", "count"),
    [
        ("tiny", list(_INCLUDED), 8),
        ("real", list(_INCLUDED), 6),
        ("real", ["arc_easy", "hellaswag", "winogrande", "truthfulqa_mc1"], 100),
    ],
    ids=["tiny", "real", "hundred"],
)
def test_numbers_are_those_of_lm_eval(kind, names, count, model, tmp_path):
    """The same rows: prompts equal to the letter, log-likelihoods to 1e-4, every verdict equal."""
    path = with_end(model, tmp_path / "ended") if kind == "tiny" else assets.smollm2()
    if path is None:
        pytest.skip("make assets")
    for name in names:
        write_data(tmp_path / "data" / name, name, count)
        write_yaml(tmp_path / "yaml", tmp_path / "data" / name, name)
    theirs = ask_lm_eval(str(path), tmp_path)
    compared = 0
    for name in names:
        out = tmp_path / f"ours-{name}"
        data = write_data(tmp_path / "data" / name, name, count)
        options = {"fewshot": FEWSHOT[name]} if name in FEWSHOT else {}
        evaluate(path, out, data, task=name, **options)
        items = rows(out, "items.arrow", EVAL_ITEMS_V1)
        scores = {(row["item_id"], row["rule"]): row["score"] for row in rows(out, "scores.arrow", EVAL_SCORES_V1)}
        choices: dict[str, list[dict]] = {}
        for row in rows(out, "choices.arrow", EVAL_CHOICES_V1) if (out / "choices.arrow").exists() else []:
            choices.setdefault(row["item_id"], []).append(row)
        for each in theirs[f"ours_{name}"]:
            item = items[each["doc_id"]]
            assert json.loads(item["prompt"]) == each["prompt"], name
            for metric, value in each["metrics"].items():
                rule = "mc2" if name == "truthfulqa_mc2" else metric
                rule = rule if name != "gsm8k" else f"{metric},{each['filter']}"
                assert scores[item["item_id"], rule] == pytest.approx(value, abs=1e-6), (name, each["doc_id"], metric)
                compared += 1
            for ours, (logp, is_greedy) in zip(choices.get(item["item_id"], []), each["answers"], strict=False):
                assert ours["logp"] == pytest.approx(float(logp), abs=1e-4 * max(1, abs(float(logp)) / 10)), name
                assert ours["is_greedy"] == (is_greedy in (True, "True"))
    assert compared > len(names) * count


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not LM_EVAL.exists(), reason="make engines")
def test_lm_eval_hears_the_same_from_our_server(model, tmp_path):
    """`local-completions` with the server's tokenizer: log-likelihoods, what is likeliest, and texts."""
    pytest.importorskip("uvicorn")
    from http_server import serving

    ended = with_end(model, tmp_path / "ended")
    counts = {"arc_easy": 4, "gsm8k": 1}
    for name, count in counts.items():
        write_data(tmp_path / "data" / name, name, count)
        write_yaml(tmp_path / "yaml", tmp_path / "data" / name, name)
    with serving(ended, name="base", max_new_tokens=300) as server:
        theirs = ask_lm_eval(f"serve={server.url}", tmp_path)
    for name, count in counts.items():
        data = write_data(tmp_path / "data" / name, name, count)
        evaluate(ended, tmp_path / name, data, task=name, fewshot=FEWSHOT[name])
    found = rows(tmp_path / "arc_easy", "choices.arrow", EVAL_CHOICES_V1)
    answers = [answer for each in theirs["ours_arc_easy"] for answer in each["answers"]]
    assert len(found) == len(answers) == 16
    for ours, (logp, is_greedy) in zip(found, answers, strict=True):
        assert ours["logp"] == pytest.approx(float(logp), abs=1e-4)
        assert ours["is_greedy"] == (is_greedy in (True, "True"))
    scores = {row["rule"]: row["score"] for row in rows(tmp_path / "gsm8k", "scores.arrow", EVAL_SCORES_V1)}
    told = {f"exact_match,{each['filter']}": each["metrics"]["exact_match"] for each in theirs["ours_gsm8k"]}
    assert scores == told


def with_end(model: Path, path: Path) -> Path:
    """The model with a token that ends texts in its tokenizer: lm-eval needs one."""
    shutil.copytree(model, path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(7)
    tokenizer.save_pretrained(path)
    return path


def ask_lm_eval(model: str, folder: Path) -> dict:
    """What it asked and heard, by task."""
    out = folder / "theirs.json"
    command = [LM_EVAL, ROOT / "tests" / "lm_eval_side.py", model, folder / "yaml", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=offline(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def offline(folder: Path) -> dict[str, str]:
    """An environment without hubs."""
    import os

    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": ""}
