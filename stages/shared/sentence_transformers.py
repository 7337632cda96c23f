"""The files that make a model folder one of sentence-transformers', <https://sbert.net>."""

from pathlib import Path

from postmill.io.json_file import load_json, write_json
from postmill.stages.shared.heads import Pooling

_FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
_OTHERS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
_PACKAGE = "sentence_transformers.models"


def write_sentence_transformers(folder: Path, base: Path, pooling: Pooling, hidden_size: int) -> None:
    """Beside the weights in `folder`: what a text's vector is made of, and that it is normalised."""
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{_PACKAGE}.{kind}"}
        for index, (path, kind) in enumerate(parts)
    ]
    write_json(folder / "modules.json", modules)
    for path, _ in parts[1:]:
        (folder / path).mkdir(exist_ok=True)
    flags = {flag: pooling == name for name, flag in _FLAGS.items()} | dict.fromkeys(_OTHERS, False)
    config = {"word_embedding_dimension": hidden_size, "include_prompt": True} | flags
    write_json(folder / "1_Pooling" / "config.json", config)
    write_json(folder / "2_Normalize" / "config.json", {})
    longest = load_json(base / "config.json").get("max_position_embeddings")
    said = base / "sentence_bert_config.json"
    if said.is_file():
        longest = load_json(said).get("max_seq_length", longest)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
