"""What a merged model folder holds beside its weights: configs, tokenizer, chat template, stop ids."""

import json
import shutil
from pathlib import Path
from typing import Any

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.json_file import load_json, write_json
from postmill.io.model_folder import ADAPTER_CONFIG, TRAINING, model_files, tokenizer_files
from postmill.io.safetensors_file import INDEX
from postmill.stages.merge.plan import Plan
from postmill.stages.shared.base_model import configured_stop_ids, trained_stop_ids
from postmill.stages.shared.saved_head import recorded_head

_CONFIGS = ("config.json", "generation_config.json")
_NOT_OF_A_MODEL = (ADAPTER_CONFIG, TRAINING, INDEX)


def write_sidecars(base: Path, adapters: list[Path], target: Path, plan: Plan, dtype: str | None) -> list[int]:
    """Fill `target` with all but the weights. Returns the stop ids that training added to the model's own.

    The tokenizer is the last adapter's if it brought one (it may have new tokens), otherwise the base's.
    """
    tokenizer = next((path for path in reversed(adapters) if (path / "tokenizer.json").is_file()), base)
    skipped = set(tokenizer_files(tokenizer)) if (tokenizer / "tokenizer.json").is_file() else set()
    if skipped:
        for name, path in tokenizer_files(tokenizer).items():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)
    for name, path in model_files(base).items():
        if path.suffix not in (".safetensors", ".gguf") and name not in (*skipped, *_CONFIGS, *_NOT_OF_A_MODEL):
            shutil.copyfile(path, target / name)
    config = load_json(base / "config.json")
    if _update_config(config, plan, dtype):
        save_json(target / "config.json", config)
    else:
        shutil.copyfile(base / "config.json", target / "config.json")
    _keep_answers(base, adapters, target)
    return _write_generation_config(base, adapters, target)


def _keep_answers(base: Path, adapters: list[Path], target: Path) -> None:
    """A generative reranker is a language model in all its files: which tokens answer stands beside them."""
    head = next((head for path in (*reversed(adapters), base) if (head := recorded_head(path)) is not None), None)
    if head is not None and head.kind == "answers":
        write_json(target / TRAINING, {"head": head})


def check_tokenizer(adapters: list[Path], plan: Plan) -> None:
    """Raises ArtifactError (78) if an adapter's tokenizer has ids that the merged embedding has no row for."""
    path = next((path for path in reversed(adapters) if (path / "tokenizer.json").is_file()), None)
    if path is None or plan.vocab is None:
        return
    tokenizer = load_json(path / "tokenizer.json")
    vocab = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = {i: token for token, i in vocab.items()} if isinstance(vocab, dict) else {len(vocab) - 1: "its last piece"}
    ids |= {token["id"]: token["content"] for token in tokenizer.get("added_tokens") or []}
    top, rows = max(ids, default=-1), plan.vocab[1]
    if top >= rows:
        raise ArtifactError(
            f"{path / 'tokenizer.json'}: has id {top} ({ids[top]}), but the embedding has {rows} rows; save the adapter"
            " with its resized embedding (save_embedding_layers=True), or remove the tokenizer's files from it",
            MISMATCH,
        )


def _update_config(config: dict[str, Any], plan: Plan, dtype: str | None) -> bool:
    """Record what the merge changed of the model's shape. Returns whether anything did."""
    inner = config.get("text_config")
    places = [config, *([inner] if isinstance(inner, dict) else [])]
    resized = plan.vocab is not None and plan.vocab[0] != plan.vocab[1]
    if plan.untied:
        config["tie_word_embeddings"] = False
    for place in places:
        if plan.untied and "tie_word_embeddings" in place:
            place["tie_word_embeddings"] = False
        if resized and plan.vocab and "vocab_size" in place:
            place["vocab_size"] = plan.vocab[1]
    if dtype:
        set_dtype(config, dtype)
    return plan.untied or resized or dtype is not None


def set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Record what weights are stored in, in the model's config and that of the text model inside."""
    inner = config.get("text_config")
    for place in (config, *([inner] if isinstance(inner, dict) else [])):
        place.pop("torch_dtype", None)
        place["dtype"] = dtype


def _write_generation_config(base: Path, adapters: list[Path], target: Path) -> list[int]:
    source = base / "generation_config.json"
    generation = load_json(source) if source.is_file() else {}
    ids = configured_stop_ids(base)
    added = [i for path in adapters for i in trained_stop_ids(path)]
    added = [i for n, i in enumerate(added) if i not in ids and i not in added[:n]]
    if added:
        ids = ids + added
        generation["eos_token_id"] = ids if len(ids) > 1 else ids[0]
        save_json(target / source.name, generation)
    elif source.is_file():
        shutil.copyfile(source, target / source.name)
    return added


def save_json(path: Path, value: dict[str, Any]) -> None:
    """As Hugging Face's tools write it."""
    path.write_bytes(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")
