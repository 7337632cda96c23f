"""Talking with a model: each answer is what the engine says to all that was said before."""

import io
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_chat import write_chat_model  # noqa: E402

from postmill.cli.chat import run  # noqa: E402
from postmill.io.errors import ConfigError, StageError  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat") / "base")


def chat(folder: Path, said: str, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(said))
        assert run([str(folder), "--max-new-tokens", "6", *flags]) == 0
    return capsys.readouterr().out


def expected(folder: Path, *questions: str, system: str = "") -> list[str]:
    """What transformers' own generation answers, greedily, turn by turn."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "system", "content": system}] if system else []
    answers = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        out = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
        answers.append(tokenizer.decode([i for i in out if i != 7], skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_each_answer_follows_from_all_that_was_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = expected(folder, "hello", "again", system="Be brief.")
    assert chat(folder, "hello\n\nagain\n", capsys, "--system", "Be brief.") == f"{first}\n{second}\n"


def test_new_and_undo_take_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (alone,) = expected(folder, "again")
    _, second = expected(folder, "hello", "again")
    said = chat(folder, "hello\nmore\n/undo\nagain\n/new\nagain\n", capsys)
    hello, more = expected(folder, "hello", "more")
    assert said == "".join(f"{text}\n" for text in (hello, more, second, alone))


def test_two_models_hear_the_same_questions_and_their_own_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_chat_model(tmp_path / "other", num_hidden_layers=1)
    ours, theirs = (expected(path, "hello", "again") for path in (folder, other))
    assert ours != theirs
    said = chat(folder, "hello\nagain\n", capsys, "--against", str(other))
    assert said == "".join(f"base: {one}\nother: {two}\n" for one, two in zip(ours, theirs, strict=True))


def test_a_seed_repeats_a_talk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--temperature", "1.5", "--seed")
    assert chat(folder, "a\nb\n", capsys, *flags, "3") == chat(folder, "a\nb\n", capsys, *flags, "3")
    assert chat(folder, "a\nb\n", capsys, *flags, "3") != chat(folder, "a\nb\n", capsys, *flags, "4")


def test_what_cannot_be_asked_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageError, match=r"leaves no room for 6 of 256; begin anew with /new"):
        chat(folder, "x" * 300 + "\n", capsys)
    with pytest.raises(ConfigError, match=r"--top-p: '2', expected a number") as caught:
        chat(folder, "", capsys, "--top-p", "2", "--seed", "x")
    assert "--seed: 'x', expected a whole number" in str(caught.value)
    with pytest.raises(ConfigError, match="not an adapter, and has no base"):
        chat(folder, "", capsys, "-m", str(folder))
