"""How fast do chats become tokens with a loss mask, file to file?

Ours: the `tokenize` command on all cores. The rival does what TRL's SFTTrainer does to a conversational dataset with
`assistant_only_loss`: `datasets` reads the file, two processes map `apply_chat_template(tokenize=True,
return_assistant_tokens_mask=True)` with TRL's training twin of the template. Both get the same rows.
Both must give the same ids on the rows both had before the clock starts. Both times hold the start of the process.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import assets
from harness import Case, Rival

TRL = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer
rows, model, template, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
template = open(template, encoding="utf-8").read()
def tokenize(example):
    made = tokenizer.apply_chat_template(
        example["messages"], chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}
data = load_dataset("json", data_files=rows, split="train", cache_dir=out + "/cache")
data = data.map(tokenize, num_proc=2, remove_columns=["messages"], load_from_cache_file=False)
data.save_to_disk(out + "/made")
"""


def chats(source: Path, num_rows: int) -> list[dict[str, Any]]:
    """Alpaca in two languages, over and over; a number in each question keeps rows apart."""
    raw = [row for name in ("en", "zh") for row in json.loads((source / f"alpaca_{name}_demo.json").read_text("utf-8"))]
    rows = []
    for number in range(num_rows):
        row = raw[number % len(raw)]
        question = f"{number}. {row['instruction']}\n{row['input']}".strip()
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
        rows.append({"messages": messages})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> float:
    """Writes JSON Lines; returns MB."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return len(text.encode()) / 1e6


def cases(smoke: bool) -> Iterator[Case]:
    model, source = assets.qwen3_tokenizer(), assets.llamafactory_data()
    name = "tokenize/qwen3"
    if model is None or source is None:
        yield Case(name, "", "MB", [], skip="the tokenizer or the data cannot be fetched here")
        return
    import trl

    work = Path(tempfile.mkdtemp())
    num_rows, num_trl = (200, 100) if smoke else (20_000, 20_000)
    rows = chats(source, num_rows)
    amount, amount_trl = write(work / "ours.jsonl", rows), write(work / "trl.jsonl", rows[:num_trl])
    templates = Path(trl.__file__).parent / "chat_templates"
    plain, training = templates / "qwen3.jinja", templates / "qwen3_training.jinja"
    ours = [sys.executable, "-m", "postmill.cli.main", "tokenize", str(work / "ours.jsonl"), "-m", str(model)]
    ours += ["--chat-template", str(plain), "--quiet", "-o", str(work / "tokens"), "--force"]
    theirs = [sys.executable, "-c", TRL, str(work / "trl.jsonl"), str(model), str(training), str(work / "trl")]

    def check() -> dict[str, Any]:
        import subprocess

        from datasets import load_from_disk

        from postmill.io.schemas import TOKENS_V1
        from postmill.io.table import TableReader

        for argv in (ours, theirs):
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        made = load_from_disk(str(work / "trl" / "made"))
        tokens, at = 0, 0
        for batch in TableReader(work / "tokens" / "tokens.arrow", TOKENS_V1):
            for ids in batch["input_ids"].to_pylist():
                if at < num_trl:
                    assert ids == made[at]["input_ids"], f"row {at} differs"
                    tokens += len(ids)
                at += 1
        assert at == num_rows
        return {"rows": num_rows, "rows_trl": num_trl, "tokens_compared": tokens}

    yield Case(
        name,
        "How fast do chats become tokens with a loss mask, file to file, with the start of the process?",
        "MB",
        [
            Rival("postmill tokenize", ours, amount),
            Rival(
                "trl, datasets, 2 processes",
                theirs,
                amount_trl,
                note=f"given {num_trl} rows of {num_rows}",
                prepare=lambda: shutil.rmtree(work / "trl", ignore_errors=True),
            ),
        ],
        check=check,
        repeats=1 if smoke else 3,
        packages=("trl", "datasets", "transformers", "tokenizers"),
    )
    shutil.rmtree(work, ignore_errors=True)
