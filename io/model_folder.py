"""A model on disk, in Hugging Face layout, looked at without loading it. Pickled weights are refused."""

import fnmatch
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from postmill.io.digest import digest_files, digest_json
from postmill.io.errors import NO_INPUT, REFUSED, ArtifactError
from postmill.io.json_file import load_json
from postmill.io.llama_tokenizer import is_rebuilt
from postmill.io.manifest import MANIFEST, SIDE_FILES, load_artifact
from postmill.io.nearby import nearby
from postmill.io.tekken import TEKKEN

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".mdl"})
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
EXTRA_TEMPLATES = "additional_chat_templates"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINING = "training.json"
"""What a run of `train` learned about its result: the base's digest, and the tokens it stops with."""
_DATA_SUFFIXES = frozenset({".json", ".jinja", ".safetensors", ".model", ".txt", ".tiktoken", ".gguf"})
_NO_FOLDER = "; give one in Hugging Face layout, or a hub's owner/name"
_WHOLE = frozenset({"model.safetensors", "model.safetensors.index.json"})


def choose_model_files(names: Iterable[str]) -> list[str]:
    """Of all names in a folder or repository, those that make the model: weights, configs, tokenizer, templates.

    Only files at the top count, no code and no pickles; beside a whole model of safetensors no copy of its weights in
    another layout (Mistral's `consolidated`, GGUF). Sorted.
    """
    top = {name for name in names if "/" not in name}
    chosen = {name for name in top if PurePosixPath(name).suffix in _DATA_SUFFIXES} - SIDE_FILES
    if chosen & _WHOLE:
        chosen -= {name for name in chosen if name.endswith(".gguf") or name.startswith("consolidated")}
    return sorted(chosen)


def choose_tokenizer_files(names: Iterable[str]) -> list[str]:
    """Of all names in a folder or repository, those of the tokenizer and its chat templates."""
    names = set(names)
    templates = sorted(name for name in names if fnmatch.fnmatchcase(name, f"{EXTRA_TEMPLATES}/*.jinja"))
    main = [] if "tokenizer.json" in names else [TEKKEN]
    chosen = [name for name in (*main, *TOKENIZER_FILES) if name in names]
    return chosen + [name for name in templates if name.count("/") == 1]


def check_not_pickled(names: Collection[str], place: str) -> None:
    """Raises ArtifactError (77) if the weights among `names` are pickles only. `place/` begins the message."""
    weights = {name for name in names if name.endswith(".safetensors")}
    pickled = sorted(n for n in names if PurePosixPath(n).suffix in PICKLES and n != "training_args.bin")
    if pickled and not weights:
        raise ArtifactError(
            f"{place}/{pickled[0]}: pickled weights can run code, so they are refused; convert them to safetensors",
            REFUSED,
        )


def model_files(path: Path) -> dict[str, Path]:
    """Files of the model at `path` that decide what it computes, by name.

    Raises ArtifactError: 66 if there is no such folder or no config.json in it, 77 if its weights are pickled.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such model folder{nearby(path) or _NO_FOLDER}", NO_INPUT)
    if not (path / "config.json").is_file() and not (path / ADAPTER_CONFIG).is_file():
        raise ArtifactError(f"{path}: no config.json in it, so it is no model folder; check the path", NO_INPUT)
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    check_not_pickled(names, str(path))
    return {name: path / name for name in choose_model_files(names)}


def model_digest(path: Path) -> str:
    """Digest of a model: of its manifest if it is our artifact, of its files by name and content if not."""
    if (path / MANIFEST).is_file():
        return load_artifact(path, ("model", "adapter", "checkpoint")).digest
    files = model_files(path)
    from postmill.io.safetensors_file import SafetensorsFile  # what only tokenizes needs no weights

    for file in files.values():
        if file.suffix == ".safetensors":
            SafetensorsFile(file).close()  # its header is checked here, with our words, before any library sees it
    return digest_files(files)


def all_model_files(path: Path) -> dict[str, Path]:
    """`model_files`, and the chat templates that lie in a folder of their own: everything that a copy needs."""
    extra = {f"{EXTRA_TEMPLATES}/{p.name}": p for p in sorted((path / EXTRA_TEMPLATES).glob("*.jinja"))}
    return model_files(path) | extra


def vocab_size(path: Path) -> int | None:
    """Rows of the model's embedding, as its config says; None where it does not."""
    config = load_json(path / "config.json")
    text = config.get("text_config")
    size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return size if isinstance(size, int) else None


def tokenizer_digest(path: Path) -> str:
    """Digest of what tokenizes: tokenizer, template, configs, the processor. Weights and other files do not count.

    Of config.json only the model's family counts, and only where it makes the tokenizer another one.
    """
    files = tokenizer_files(path)
    config = load_json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    digest = digest_files(files)
    return digest_json({"files": digest, "rebuilt": True}) if is_rebuilt(path, config) else digest


def tokenizer_files(path: Path) -> dict[str, Path]:
    """The tokenizer's files by name. Raises ArtifactError (66) if there is no tokenizer.json, nor a tekken.json."""
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such model folder{nearby(path) or _NO_FOLDER}", NO_INPUT)
    if not any((path / name).is_file() for name in ("tokenizer.json", TEKKEN)):
        raise ArtifactError(f"{path}: no tokenizer.json in it; {_how_to_convert(path)}", NO_INPUT)
    extra = [f"{EXTRA_TEMPLATES}/{p.name}" for p in (path / EXTRA_TEMPLATES).glob("*.jinja")]
    names = [name for name in (*TOKENIZER_FILES, TEKKEN) if (path / name).is_file()]
    return {name: path / name for name in choose_tokenizer_files([*names, *extra])}


def _how_to_convert(path: Path) -> str:
    """What turns the tokenizer files that are there into a tokenizer.json."""
    command = f"T.from_pretrained('{path}').save_pretrained('{path}')"
    python = f'python -c "from transformers import AutoTokenizer as T; {command}"'
    names = {file.name for file in path.iterdir()}
    if "tokenizer.model" in names:
        return f"its tokenizer.model becomes one with: pip install sentencepiece protobuf && {python}"
    if {"vocab.json", "merges.txt"} <= names or "vocab.txt" in names:
        return f"its vocabulary becomes one with: {python}"
    return "give the folder of a model with its tokenizer"
