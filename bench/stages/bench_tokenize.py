"""How fast do chats become packed tokens with loss weights, and with a loss mask, file to file?

Ours: `postmill tokenize | postmill pack`, and `tokenize` alone, on all cores. The rival does what TRL's SFTTrainer does
to a conversational dataset with `assistant_only_loss`: `datasets` reads the file, two processes map
`apply_chat_template(tokenize=True, return_assistant_tokens_mask=True)` with TRL's training twin of the template, and
`pack_dataset` packs. It has no weights and marks tokens with 0 and 1. In the first case it gets the first rows of
ours, since all would take it an hour, and both use the twin, which writes earlier turns differently from Qwen3's own
template; in the second both get the same rows.
Both must give the same ids on the rows both had before the clock starts. All times hold the start of the processes,
but for the rival's second row, which counts from when it has imported its libraries and loaded the tokenizer: with more
rows its start would count less and less. Ours is always counted.
"""

import itertools
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import assets
import conversations
import texts
from harness import Case, Rival

PACKAGES = ("trl", "datasets", "transformers", "tokenizers")

PACKER = "from trl.data_utils import pack_dataset\n"
TRL = """
import sys, time
from datasets import load_dataset
from transformers import AutoTokenizer
rows, model, template, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
template = open(template, encoding="utf-8").read()
begin = time.perf_counter()
def tokenize(example):
    made = tokenizer.apply_chat_template(
        example["messages"], chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}
data = load_dataset("json", data_files=rows, split="train", cache_dir=out + "/cache")
data = data.map(tokenize, num_proc=2, remove_columns=["messages"], load_from_cache_file=False)
data.save_to_disk(out + "/made")
"""
PACK = """
packed = pack_dataset(data, 4096, "bfd", {"num_proc": 2, "load_from_cache_file": False})
packed.save_to_disk(out + "/packed")
open(out + "/seconds", "w").write(str(time.perf_counter() - begin))
"""
WEIGHTS = "default+hermes+ignore_empty_think"


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


def fresh(name: str, argv: list[str], amount: float, note: str, made: Path) -> Rival:
    """A command whose output `made` is removed before each run."""
    return Rival(name, argv, amount, note=note, prepare=lambda: shutil.rmtree(made, ignore_errors=True))


def cases(smoke: bool) -> Iterator[Case]:
    model, source = assets.qwen3_tokenizer(), assets.llamafactory_data()
    if model is None or source is None:
        yield Case("tokenize/qwen3", "", "MB", [], skip="the tokenizer or the data cannot be fetched here")
        return
    with tempfile.TemporaryDirectory() as work:
        yield packing(Path(work), model, source, smoke)
    with tempfile.TemporaryDirectory() as work:
        yield masking(Path(work), model, source, smoke)


def packing(work: Path, model: Path, source: Path, smoke: bool) -> Case:
    """The whole path, on chats of several turns that hardly repeat."""
    num_rows, num_trl = (200, 100) if smoke else (120_000, 10_000)
    pages = texts.corpora(smoke=smoke)
    count, amount = conversations.write(work / "ours.jsonl", conversations.chats(num_rows, source, pages))
    _, amount_trl = conversations.write(work / "trl.jsonl", conversations.chats(num_trl, source, pages))
    _, training = templates()
    stage = [sys.executable, "-m", "postmill.cli.main"]
    tokenize = [*stage, "tokenize", str(work / "ours.jsonl"), "-m", str(model), "--chat-template", str(training)]
    tokenize += ["--loss-scale", WEIGHTS, "--quiet"]
    pack = [*stage, "pack", "-", "-o", str(work / "packed"), "--row-tokens", "4096", "--on-long", "drop", "--quiet"]
    ours = ["bash", "-o", "pipefail", "-c", f"{shlex.join(tokenize)} | {shlex.join(pack)}"]
    script = [sys.executable, "-c", PACKER + TRL + PACK]
    theirs = [*script, str(work / "trl.jsonl"), str(model), str(training), str(work / "trl")]
    whole = fresh("trl, datasets, 2 processes", theirs, amount_trl, f"given {num_trl} rows", work / "trl")
    seconds = work / "trl" / "seconds"
    working = whole._replace(name="trl, without its start", seconds=lambda: float(seconds.read_text()))
    return Case(
        "tokenize-pack/qwen3",
        "How fast do chats become packed tokens with loss weights, file to file, with the start of the processes?",
        "MB",
        [
            fresh("postmill tokenize | pack", ours, amount, f"{count} rows, {WEIGHTS}", work / "packed"),
            whole,
            working,
        ],
        check=lambda: same_ids(ours, theirs, work / "packed" / "tokens" / "tokens.arrow", work / "trl" / "made"),
        repeats=1 if smoke else 3,
        packages=PACKAGES,
    )


def masking(work: Path, model: Path, source: Path, smoke: bool) -> Case:
    """Tokens and masks alone, on equal rows."""
    rows = chats(source, 200 if smoke else 20_000)
    count, amount = conversations.write(work / "rows.jsonl", iter(rows))
    plain, training = templates()
    ours = [sys.executable, "-m", "postmill.cli.main", "tokenize", str(work / "rows.jsonl"), "-m", str(model)]
    ours += ["--chat-template", str(plain), "--quiet", "-o", str(work / "tokens"), "--force"]
    theirs = [sys.executable, "-c", TRL, str(work / "rows.jsonl"), str(model), str(training), str(work / "trl")]
    return Case(
        "tokenize/qwen3",
        "How fast do chats become tokens with a loss mask, file to file, with the start of the process?",
        "MB",
        [
            Rival("postmill tokenize", ours, amount, note=f"{count} rows"),
            fresh("trl, datasets, 2 processes", theirs, amount, f"{count} rows", work / "trl"),
        ],
        check=lambda: same_ids(ours, theirs, work / "tokens" / "tokens.arrow", work / "trl" / "made"),
        repeats=1 if smoke else 3,
        packages=PACKAGES,
    )


def templates() -> tuple[Path, Path]:
    """Qwen3's template, and TRL's twin of it that marks what the assistant says."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return folder / "qwen3.jinja", folder / "qwen3_training.jinja"


def same_ids(ours: list[str], theirs: list[str], table: Path, dataset: Path) -> dict[str, Any]:
    """Runs both and compares the ids of the rows that both had."""
    from datasets import load_from_disk

    from postmill.io.schemas import TOKENS_V1
    from postmill.io.table import TableReader

    for argv in (ours, theirs):
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    made = load_from_disk(str(dataset))
    rows = (ids for batch in TableReader(table, TOKENS_V1) for ids in batch["input_ids"].to_pylist())
    tokens = 0
    for number, ids in enumerate(itertools.islice(rows, len(made))):
        assert ids == made[number]["input_ids"], f"row {number} differs"
        tokens += len(ids)
    return {"rows_compared": len(made), "tokens_compared": tokens}
