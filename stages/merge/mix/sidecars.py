"""What a mixture holds beside its weights: the first model's files, and every model's stop ids."""

import shutil
from pathlib import Path
from typing import Any

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.json_file import load_json
from postmill.io.model_folder import TRAINING, model_files
from postmill.io.safetensors_file import INDEX
from postmill.stages.merge.sidecars import save_json, set_dtype
from postmill.stages.progress import Progress
from postmill.stages.shared.base_model import all_stop_ids, configured_stop_ids

_TEMPLATE = "chat_template.jinja"


def check_tokenizers(paths: list[Path]) -> None:
    """Raises ArtifactError (78) if two models give a token other ids; warns if their chat templates differ."""
    known: tuple[Path, dict[str, int]] | None = None
    for path in paths:
        if not (path / "tokenizer.json").is_file():
            continue
        ids = _token_ids(path)
        if known is None:
            known = path, ids
        elif ids != known[1]:
            differing = sorted(ids.items() ^ known[1].items(), key=lambda item: item[1])
            token, count = differing[0][0], len({token for token, _ in differing})
            raise ArtifactError(
                f"{path / 'tokenizer.json'}: {count} tokens are not those of {known[0]}"
                f" ({token!r} is {ids.get(token)} here and {known[1].get(token)} there), so rows of the embeddings do"
                " not belong together; bring the models to one vocabulary first",
                MISMATCH,
            )
    templates = {p: (p / _TEMPLATE).read_bytes() for p in paths if (p / _TEMPLATE).is_file()}
    if len({*templates.values()}) > 1:
        others = ", ".join(str(path) for path in templates if templates[path] != templates.get(paths[0]))
        Progress.warn("merge", f"chat templates differ: the result has that of {paths[0]}, not of {others}")


def _token_ids(path: Path) -> dict[str, int]:
    tokenizer = load_json(path / "tokenizer.json")
    vocab: Any = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocab, list):  # of a Unigram model: pieces with their scores, in the order of their ids
        vocab = {piece[0]: number for number, piece in enumerate(vocab)}
    return dict(vocab) | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}


def write_model_files(
    paths: list[Path], target: Path, config: dict[str, Any], *, untied: bool, dtype: str | None
) -> list[int]:
    """Fill `target` with `config` and the first model's other files. Returns stop ids that only other models have."""
    first = paths[0]
    for name, path in model_files(first).items():
        if path.suffix not in (".safetensors", ".gguf") and name not in (INDEX, TRAINING, "config.json"):
            shutil.copyfile(path, target / name)
    if untied or dtype or config != load_json(first / "config.json"):
        config = dict(config)
        if untied:
            config["tie_word_embeddings"] = False
        if dtype:
            set_dtype(config, dtype)
        save_json(target / "config.json", config)
    else:
        shutil.copyfile(first / "config.json", target / "config.json")
    own = configured_stop_ids(first)
    added = sorted(all_stop_ids(paths) - {*own})
    if added:
        place = first / "generation_config.json"
        generation = load_json(place) if place.is_file() else {}
        generation["eos_token_id"] = own + added if len(own + added) > 1 else added[0]
        save_json(target / place.name, generation)
    return added
