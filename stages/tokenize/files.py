"""Which files of a folder or a repository are the dataset.

A repository's card may say it (`configs` in the README's front matter, as `datasets` reads them). Otherwise a subset
is a folder or the beginning of a file's name; and where names tell splits apart, the training split is taken.
"""

import fnmatch
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from postmill.io.errors import BAD_DATA, NO_INPUT, ArtifactError, ConfigError
from postmill.io.json_file import NOT_JSON

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
COMPRESSIBLE = frozenset({"jsonl", "json", "csv", "tsv", "text"})
CARD = "README.md"
STATE = "state.json"
"""What `save_to_disk` of `datasets` writes beside its files: which they are."""
SAVED = ("dataset_info.json", STATE)
"""Files in the folders of `datasets`, its cache's too."""
# What `datasets` calls the results of `map` and `filter`, which it keeps beside the data.
_CACHE = re.compile(r"(?:cache|tmp|indices)-?[0-9a-z_]+\.arrow")
# What libraries put beside the data.
_COMPANIONS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "manifest.json"}
_SPLIT = re.compile(r"(?:^|[/_.\-])(train|training|test|testing|validation|valid|val|dev|eval)(?=[/_.\-]|$)", re.I)


class Kind(msgspec.Struct, frozen=True):
    """How a file is read."""

    format: str
    compression: str = ""


def kind_of(name: str) -> Kind | None:
    """By the ending of its name, or None."""
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix, "")
    if compression:
        path = path.with_suffix("")
    format_name = FORMATS.get(path.suffix)
    if format_name is None or (compression and format_name not in COMPRESSIBLE):
        return None
    return Kind(format_name, compression)


def choose_files(names: Sequence[str], card: str, subsets: Sequence[str], dataset: str) -> list[str]:
    """The data files among `names` (relative, `/` between parts) for `subsets`, sorted. `card` is README.md's text.

    Raises ArtifactError if there are none or they are of more than one format, ConfigError for an unknown subset.
    """
    data = sorted(name for name in names if kind_of(name) and not _is_companion(name))
    saved = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name in SAVED}
    data = [name for name in data if PurePosixPath(name).parent not in saved or not _CACHE.fullmatch(_file(name))]
    if not data:
        known = " ".join(sorted({*FORMATS}))
        raise ArtifactError(
            f"{dataset}: no data files in it; known are {known} and .gz, .zst, .bz2 or .xz of the text ones", NO_INPUT
        )
    configs = _card_configs(card)
    if configs:
        chosen = _by_card(data, configs, subsets, dataset)
    elif subsets and tuple(subsets) != ("all",):
        chosen = [name for subset in subsets for name in _by_name(data, subset, dataset)]
    else:
        chosen = _training_split(data)
    formats = sorted({kind.format for name in chosen if (kind := kind_of(name))})
    if len(formats) > 1:
        raise ArtifactError(
            f"{dataset}: files of formats {', '.join(formats)} may hold the same rows; name the files", BAD_DATA
        )
    return sorted(set(chosen))


def saved_files(names: Sequence[str], states: dict[str, bytes], dataset: str) -> list[str]:
    """`names` without those that a folder of `save_to_disk` does not count as its data.

    states: content of each `state.json` by its name. Raises ArtifactError: (66) a file it lists is not there, (65) its
    rows are chosen by an indices file.
    """
    kept = list(names)
    for state_name, content in sorted(states.items()):
        try:
            state = msgspec.json.decode(content)
            files = [str(item["filename"]) for item in state["_data_files"]]
        except NOT_JSON:
            continue
        except (KeyError, TypeError):
            continue  # a file of the same name from another library
        if state.get("_indices_data_files"):
            remedy = "call flatten_indices() and save_to_disk again"
            raise ArtifactError(f"{dataset}: {state_name} chooses rows through a file of indices; {remedy}", BAD_DATA)
        folder = PurePosixPath(state_name).parent
        listed = {(folder / file).as_posix() for file in files}
        missing = sorted(listed - set(names))
        if missing:
            raise ArtifactError(f"{dataset}: {state_name} lists {missing[0]}, which is not there; copy it", NO_INPUT)
        kept = [name for name in kept if PurePosixPath(name).parent != folder or name in listed or not kind_of(name)]
    return kept


def _file(name: str) -> str:
    return PurePosixPath(name).name


def _is_companion(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name in _COMPANIONS or any(part.startswith((".", "_")) for part in path.parts)


def _training_split(names: list[str]) -> list[str]:
    """Files of the training split, if names tell; files that name no split are kept."""
    splits = {name: [match.lower() for match in _SPLIT.findall(name)] for name in names}
    training = [name for name, found in splits.items() if any(split.startswith("train") for split in found)]
    unnamed = [name for name, found in splits.items() if not found]
    return training or unnamed or names


def _by_name(names: list[str], subset: str, dataset: str) -> list[str]:
    matches = [name for name in names if subset in PurePosixPath(name).parts[:-1]]
    if not matches:
        matches = [name for name in names if re.match(re.escape(subset) + r"(?:[_.\-]|$)", PurePosixPath(name).name)]
    if not matches:
        folders = sorted({part for name in names for part in PurePosixPath(name).parts[:-1]})
        known = ", ".join(folders or [PurePosixPath(name).name for name in names][:8])
        raise ConfigError(f"dataset {dataset}: no subset {subset}; there are {known}")
    return _training_split(matches)


def _card_configs(card: str) -> dict[str, dict[str, Any]]:
    """`configs` of the front matter, by name."""
    if not card.startswith("---"):
        return {}
    front = card.split("\n---", 1)[0].removeprefix("---")
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        head = YAML(typ="safe", pure=True).load(front)
    except YAMLError:
        return {}
    configs = head.get("configs") if isinstance(head, dict) else None
    if not isinstance(configs, list):
        return {}
    named = [item for item in configs if isinstance(item, dict) and "data_files" in item]
    return {str(item.get("config_name", "default")): item for item in named}


def _by_card(names: list[str], configs: dict[str, dict[str, Any]], subsets: Sequence[str], dataset: str) -> list[str]:
    if tuple(subsets) == ("all",):
        wanted = list(configs)
    elif subsets:
        wanted = list(subsets)
    else:
        marked = [name for name, config in configs.items() if config.get("default") is True]
        wanted = marked or [name for name in configs if name == "default" or len(configs) == 1]
    known = ", ".join(configs)
    if not wanted:
        raise ConfigError(f"dataset {dataset}: has several subsets; add :NAME or :all (there are {known})")
    chosen: list[str] = []
    for subset in wanted:
        if subset not in configs:
            raise ConfigError(f"dataset {dataset}: no subset {subset}; there are {known}")
        patterns = _patterns(configs[subset]["data_files"])
        matches = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        if not matches:
            raise ArtifactError(f"{dataset}: subset {subset} has no data file like {', '.join(patterns)}", NO_INPUT)
        chosen += matches
    return chosen


def _patterns(data_files: Any) -> list[str]:
    """The file patterns of the training split, or of all if none is called so."""
    items = data_files if isinstance(data_files, list) else [data_files]
    splits = [item for item in items if isinstance(item, dict)]
    training = [item for item in splits if str(item.get("split", "")).startswith("train")]
    patterns: list[str] = [item for item in items if isinstance(item, str)]
    for item in training or splits:
        paths = item.get("path", [])
        patterns += [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    return patterns
