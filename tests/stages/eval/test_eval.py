"""The eval stage on tiny random models: what it records, that it repeats itself, and that it goes on after a kill."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import warm

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

from postmill.io.errors import ArtifactError, StageError  # noqa: E402
from postmill.io.schemas import EVAL_ITEMS_V1, EVAL_SCORES_V1  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.eval.config import STAGE, Eval  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('unknown role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTIONS = [{"id": f"q{n}", "question": "word " * n, "answer": "e", "group": "ab"[n % 2]} for n in range(1, 8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model over bytes."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE)
    fast.save_pretrained(path)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, eos_token_id=7, bos_token_id=None,
    )  # fmt: skip
    net = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    net.save_pretrained(path)
    return path


def ask(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluate(model: Path, out: Path, lines: list[dict[str, Any]] = QUESTIONS, **options: Any) -> Any:
    before = options.pop("before", None)
    given = {"tested": [str(model)], "ask": [str(ask(out.parent, lines))]}
    given |= {"before": [str(before)]} if before else {}
    config = Eval(**({"max_new_tokens": 9, "batch_size": 3} | options))
    return run_stage(STAGE, config, given, out, Options(threads=1)).manifest


def rows(path: Path, schema: Any) -> list[dict[str, Any]]:
    return [row for batch in TableReader(path, schema) for row in batch.to_pylist()]


def test_answers_are_those_of_generate(model: Path, tmp_path: Path) -> None:
    """Greedy answers, batched and padded, equal transformers' own generation of each prompt alone."""
    manifest = evaluate(model, tmp_path / "out")
    net = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    items = rows(tmp_path / "out" / "items.arrow", EVAL_ITEMS_V1)
    assert [item["item_id"] for item in items] == [f"q{n}" for n in range(1, 8)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    for item in items:
        prompt = torch.tensor([item["prompt_ids"]])
        made = net.generate(prompt, max_new_tokens=9, do_sample=False, eos_token_id=7, pad_token_id=0)
        assert item["output_ids"] == made[0, prompt.shape[1] :].tolist()
        assert tokenizer.decode(item["prompt_ids"]).endswith("<assistant>")
        assert item["finish_reason"] == ("stop" if item["output_ids"][-1] == 7 else "length")
    scores = rows(tmp_path / "out" / "scores.arrow", EVAL_SCORES_V1)
    assert manifest.metrics["num_right"] == sum(row["ok"] for row in scores)
    assert manifest.metrics["num_scored"] == 7
    assert manifest.metrics["groups"]["a"]["num_items"] == 3
    assert (tmp_path / "out" / "report.md").read_text().count("\n| word") == 7


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 3}])
def test_same_bytes_twice(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = evaluate(model, tmp_path / "a" / "out", **options)
    second = evaluate(model, tmp_path / "b" / "out", **options)
    assert first.digest() == second.digest()


def test_a_seed_is_the_questions_own(model: Path, tmp_path: Path) -> None:
    """A sampled answer depends on seed and id, and not on which other questions are asked."""
    (tmp_path / "few").mkdir()
    evaluate(model, tmp_path / "all", temperature=1.0, batch_size=1)
    evaluate(model, tmp_path / "few" / "out", QUESTIONS[3:5], temperature=1.0, batch_size=1)
    every = {row["item_id"]: row["output_ids"] for row in rows(tmp_path / "all" / "items.arrow", EVAL_ITEMS_V1)}
    for row in rows(tmp_path / "few" / "out" / "items.arrow", EVAL_ITEMS_V1):
        assert row["output_ids"] == every[row["item_id"]]
    (tmp_path / "other").mkdir()
    evaluate(model, tmp_path / "other" / "out", temperature=1.0, batch_size=1, seed=1)
    other = rows(tmp_path / "other" / "out" / "items.arrow", EVAL_ITEMS_V1)
    assert any(row["output_ids"] != every[row["item_id"]] for row in other)


def test_errors_are_no_wrong_answers(model: Path, tmp_path: Path) -> None:
    lines = [
        *QUESTIONS[:2],
        {"id": "long", "question": "x" * 300, "answer": "e"},
        {"id": "role", "messages": [{"role": "bad", "content": "x"}], "answer": "e"},
    ]
    with pytest.raises(StageError, match="2 of 4 questions could not be asked") as caught:
        evaluate(model, tmp_path / "out", lines)
    assert caught.value.code == 65
    assert not (tmp_path / "out").exists()
    metrics = evaluate(model, tmp_path / "out", lines, max_errors=0.5).metrics
    assert (metrics["num_items"], metrics["num_errors"], metrics["num_scored"]) == (4, 2, 2)
    items = {row["item_id"]: row for row in rows(tmp_path / "out" / "items.arrow", EVAL_ITEMS_V1)}
    assert "no room" in items["long"]["error"] and items["long"]["output"] is None
    assert "unknown role" in items["role"]["error"]
    scores = {row["item_id"]: row for row in rows(tmp_path / "out" / "scores.arrow", EVAL_SCORES_V1)}
    assert scores["long"]["ok"] is None and scores["long"]["score"] is None


def test_scored_again_without_the_model(model: Path, tmp_path: Path) -> None:
    evaluate(model, tmp_path / "out")
    said = {row["item_id"]: row["output"] for row in rows(tmp_path / "out" / "items.arrow", EVAL_ITEMS_V1)}
    lines = [line | {"answer": said[line["id"]], "score": "exact"} for line in QUESTIONS]
    manifest = evaluate(tmp_path / "out", tmp_path / "again", lines)
    assert manifest.metrics["accuracy"] == 1
    assert manifest.versions == {}  # nothing was loaded
    with pytest.raises(ArtifactError, match="'q1' was asked in other words") as caught:
        evaluate(tmp_path / "out", tmp_path / "other", [QUESTIONS[0] | {"question": "else"}])
    assert caught.value.code == 78


def test_before_and_after(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An adapter against its base: the base is found by itself, both are recorded, the change is counted."""
    net = transformers.AutoModelForCausalLM.from_pretrained(model)
    wrapped = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "adapter")
    metrics = evaluate(tmp_path / "adapter", tmp_path / "out", before=model).metrics
    alone = tmp_path / "alone"
    alone.mkdir()
    evaluate(model, alone / "out")
    assert (tmp_path / "out" / "before_items.arrow").read_bytes() == (alone / "out" / "items.arrow").read_bytes()
    change = metrics["change"]
    right = metrics["num_right"], metrics["before"]["num_right"]
    assert (change["kept"] + change["gained"], change["kept"] + change["lost"]) == right
    assert change["same_output"] < 7
    assert "| question | before | after |" in (tmp_path / "out" / "report.md").read_text()


def test_min_accuracy_is_a_gate(model: Path, tmp_path: Path) -> None:
    lines = [{"question": "x", "answer": "not in there"}]
    with pytest.raises(StageError, match="is under --min-accuracy") as caught:
        evaluate(model, tmp_path / "out", lines, min_accuracy=0.5)
    assert caught.value.code == 1


def test_goes_on_after_a_kill(model: Path, tmp_path: Path) -> None:
    lines = [{"id": f"q{n}", "question": f"word {n}", "answer": "e"} for n in range(30)]
    argv = ["eval", model, "--ask", ask(tmp_path, lines)]
    argv += ["--batch-size", "1", "--max-new-tokens", "40", "--threads", "1"]
    assert warm.postmill(*argv, "-o", tmp_path / "whole").returncode == 0
    out = tmp_path / "out"
    journal = tmp_path / "out.checkpoints" / "replies.jsonl"
    child = warm.start(*argv, "-o", out)
    while child.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 10):
        time.sleep(warm.POLL_S)
    child.send_signal(signal.SIGKILL)
    assert child.end().returncode == -signal.SIGKILL
    assert not out.exists()
    answered = journal.read_bytes().count(b"\n") - 1
    with journal.open("ab") as file:
        file.write(b'[{"item_id": "q1", "outp')  # as if the kill had torn a line
    assert warm.postmill(*argv, "-o", out).returncode == 0
    assert answered >= 10
    assert (out / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
    assert not journal.exists()


def test_stopped_by_a_signal_says_so_and_goes_on(model: Path, tmp_path: Path) -> None:
    lines = [{"id": f"q{n}", "question": f"word {n}", "answer": "e"} for n in range(30)]
    argv = ["eval", model, "--ask", ask(tmp_path, lines)]
    argv += ["--batch-size", "1", "--max-new-tokens", "40", "--threads", "1", "-o", tmp_path / "out"]
    journal = tmp_path / "out.checkpoints" / "replies.jsonl"
    child = warm.start(*argv)
    while child.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        time.sleep(warm.POLL_S)
    child.send_signal(signal.SIGTERM)
    ended = child.end()
    assert ended.returncode == 75
    assert "of 30 answers are saved; run the same command again" in ended.stderr
    assert warm.postmill(*argv).returncode == 0
