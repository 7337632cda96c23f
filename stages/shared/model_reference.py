"""What `-m` and every model port can be given: a folder, or a model of a hub.

    base/                        a folder
    owner/name[@revision]        Hugging Face, unless there is a folder of that name
    hf:owner/name[@revision]     Hugging Face
    ms:owner/name[@revision]     ModelScope

Of a hub's model only weights in safetensors, configs, tokenizer and chat templates are fetched: no code, no pickles. Of
one that is only asked for its tokenizer, the tokenizer's files.
"""

import functools
from pathlib import Path

import msgspec

from postmill.io.errors import NO_INPUT, ArtifactError
from postmill.io.hub import PREFIXES, Fetched, Repository, fetch, looks_owned, parse_repository
from postmill.io.json_file import load_json
from postmill.io.model_folder import check_not_pickled, choose_model_files, choose_tokenizer_files
from postmill.io.safetensors_file import INDEX
from postmill.stages.progress import Progress, fetch_progress


class Model(msgspec.Struct, frozen=True):
    """A model that was found: its folder, what to call it, and which commit of which repository it is."""

    path: Path
    name: str
    source: str = ""
    """`hf:owner/name@commit`, or empty for a folder."""


@functools.cache  # ports of one stage may name the same model
def find_model(reference: str, *, tokenizer_only: bool = False) -> Model:
    """The folder of a model, fetched if it is a hub's. Whether a local folder holds a model is not looked at here.

    Raises ConfigError (2) for an id that cannot be one; ArtifactError: 66 if it is not there, 69 if the hub cannot be
    reached, 77 if it has only pickled weights.
    """
    repository = hub_model(reference)
    if repository is None:
        path = Path(reference)
        if looks_owned(reference) and path.exists():
            Progress.show(f"{reference}: the folder here; for the model on Hugging Face write hf:{reference}")
        elif looks_owned(reference):  # a misspelt path should not become a download
            raise ArtifactError(
                f"{reference}: no such folder in {path.parent}; for the model on Hugging Face write hf:{reference}",
                NO_INPUT,
            )
        return Model(path, path.name)
    fetched = _fetch(repository, tokenizer_only=tokenizer_only)
    return Model(fetched.folder, repository.name, fetched.source)


def hub_model(reference: str) -> Repository | None:
    """The repository that a reference names, or None for a folder. Raises ConfigError (2) for an id that cannot be
    one."""
    if not any(reference.startswith(prefix) for prefix in PREFIXES):
        path = Path(reference)
        if path.exists() or not looks_owned(reference) or path.parent.exists():
            return None
    return parse_repository(reference)


def _fetch(repository: Repository, *, tokenizer_only: bool) -> Fetched:
    def choose(names: list[str], _: str) -> list[str]:
        tokenizer = choose_tokenizer_files(names)
        if tokenizer_only:
            return tokenizer
        check_not_pickled([name for name in names if "/" not in name], str(repository))
        return sorted({*choose_model_files(names), *tokenizer})

    fetched = fetch(repository, choose, fetch_progress(str(repository)))
    wanted = "tokenizer.json" if tokenizer_only else ".safetensors"
    if not any(name.endswith(wanted) for name in fetched.files):
        what = "no tokenizer.json" if tokenizer_only else "no weights in safetensors"
        raise ArtifactError(f"{repository}: {what} in it; choose another model", NO_INPUT)
    if not tokenizer_only:
        _check_whole(fetched)
    return fetched


def _check_whole(fetched: Fetched) -> None:
    """The folder holds what was chosen and nothing that would be taken for a part of the model.

    Caches are shared with other programs: a branch of ModelScope keeps files that a newer state no longer has, and a
    cache whose listing was lost may miss a shard. Raises ArtifactError (66, 65).
    """
    folder, place = fetched.folder, str(fetched.repository)
    if INDEX in fetched.files:
        shards = set(dict(load_json(fetched.files[INDEX]).get("weight_map", {})).values())
        missing = sorted(str(shard) for shard in shards - fetched.files.keys())
        if missing:
            raise ArtifactError(f"{place}: {missing[0]} is missing; fetch it again: postmill get {place}", NO_INPUT)
    strangers = set(choose_model_files(p.name for p in folder.iterdir())) - fetched.files.keys()
    if strangers:
        raise ArtifactError(f"{folder / min(strangers)}: not of {place}; remove this file, then run again")
