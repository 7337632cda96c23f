"""What people install: the wheel without torch, and the Rust part alone. Each in a virtual environment of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def environment(folder: Path, *requirements: str) -> Path:
    """A fresh environment with these installed; its python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    argv = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
    subprocess.run(argv, check=True, env={**os.environ, "CARGO_TARGET_DIR": target})
    return python


def chats(folder: Path) -> Path:
    path = folder / "chats.jsonl"
    rows = [{"query": f"the {n}", "response": "in " * (n % 5 + 1)} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_wheel_tokenizes_and_packs_without_torch(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", str(ROOT))
    tiny_tokenizer.write_tokenizer(tmp_path / "base")
    postmill = python.parent / "postmill"
    tokens = subprocess.run(
        [str(postmill), "tokenize", str(chats(tmp_path)), "-m", str(tmp_path / "base"), "-o", str(tmp_path / "tokens")],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    pack = python.parent / "postmill-pack"
    subprocess.run([str(pack), tokens, "-o", str(tmp_path / "packed"), "--row-tokens", "64"], check=True)
    found = subprocess.run(
        [str(python), "-c", "import importlib.util as u; print([m for m in ('torch', 'pandas') if u.find_spec(m)])"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    assert found == "[]"


def test_the_rust_part_alone_tokenizes(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", str(ROOT / "ext" / "rust" / "py"))
    tiny_tokenizer.write_tokenizer(tmp_path / "base")
    code = """
import sys, pathlib, postmill_rs
base = pathlib.Path(sys.argv[1])
encoder = postmill_rs.ChatEncoder(
    (base / "tokenizer.json").read_bytes(), bos=None, eos="<|im_end|>", template=sys.argv[2], loss_scale="default"
)
rows, ledger, counts = encoder.encode_chunk(pathlib.Path(sys.argv[3]).read_bytes(), "chats.jsonl", 0, 1, 0)
assert hasattr(rows, "__arrow_c_array__") and counts["rows"] == 20 and counts["trained_tokens"] > 0, counts
print("ok")
"""
    argv = [str(python), "-c", code, str(tmp_path / "base"), tiny_tokenizer.TEMPLATE, str(chats(tmp_path))]
    assert subprocess.run(argv, check=True, capture_output=True, text=True).stdout == "ok\n"
