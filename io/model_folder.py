"""A model on disk, in Hugging Face layout, looked at without loading it. Pickled weights are refused."""

from pathlib import Path

from postmill.io.digest import digest_files
from postmill.io.errors import NO_INPUT, REFUSED, ArtifactError
from postmill.io.manifest import MANIFEST, SIDE_FILES, load_artifact
from postmill.io.safetensors_file import SafetensorsFile

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".mdl"})
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_DATA_SUFFIXES = frozenset({".json", ".jinja", ".safetensors", ".model", ".txt", ".tiktoken", ".gguf"})


def model_files(path: Path) -> dict[str, Path]:
    """Files of the model at `path` that decide what it computes, by name.

    Raises ArtifactError: 66 if there is no such folder or no config.json in it, 77 if its weights are pickled.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such model folder; give a folder in Hugging Face layout", NO_INPUT)
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise ArtifactError(f"{path}: no config.json in it, so it is no model folder; check the path", NO_INPUT)
    names = [p for p in sorted(path.iterdir()) if p.is_file() and p.name not in SIDE_FILES]
    weights = [p for p in names if p.suffix == ".safetensors"]
    pickled = [p for p in names if p.suffix in PICKLES and p.name != "training_args.bin"]
    if pickled and not weights:
        raise ArtifactError(
            f"{pickled[0]}: pickled weights can run code, so they are refused; convert them to safetensors", REFUSED
        )
    return {p.name: p for p in names if p.suffix in _DATA_SUFFIXES}


def model_digest(path: Path) -> str:
    """Digest of a model: of its manifest if it is our artifact, of its files by name and content if not."""
    if (path / MANIFEST).is_file():
        return load_artifact(path, ("model", "adapter", "checkpoint")).digest
    files = model_files(path)
    for file in files.values():
        if file.suffix == ".safetensors":
            SafetensorsFile(file).close()  # its header is checked here, with our words, before any library sees it
    return digest_files(files)


def tokenizer_digest(path: Path) -> str:
    """Digest of what tokenizes: tokenizer, its config, its template. Weights and other files do not count."""
    return digest_files(tokenizer_files(path))


def tokenizer_files(path: Path) -> dict[str, Path]:
    """The tokenizer's files by name. Raises ArtifactError (66) if there is no tokenizer.json."""
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such model folder; give a folder in Hugging Face layout", NO_INPUT)
    if not (path / "tokenizer.json").is_file():
        raise ArtifactError(
            f"{path}: no tokenizer.json in it; save the fast tokenizer there with transformers' save_pretrained",
            NO_INPUT,
        )
    files = {name: path / name for name in TOKENIZER_FILES if (path / name).is_file()}
    extra = sorted((path / "additional_chat_templates").glob("*.jinja"))
    return files | {f"additional_chat_templates/{p.name}": p for p in extra}
