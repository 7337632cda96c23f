"""Datasets of the two hubs, through the hubs' own clients and kept in their caches.

Endpoints and tokens are the clients' business (HF_ENDPOINT, MODELSCOPE_ENDPOINT and so on). Hugging Face's repositories
are pinned to a commit, which is part of what their files are called here, so a manifest says which one it was.
ModelScope tells no commit with a listing; there each file is checked against the SHA-256 that was listed.
"""

from collections.abc import Callable
from pathlib import Path

from postmill.io.errors import NO_INPUT, UNAVAILABLE, ArtifactError, ConfigError
from postmill.stages.tokenize.files import CARD

Choose = Callable[[list[str], str], list[str]]
"""From all names in a repository and its card's text to the names of the data files."""


def fetch(hub: str, name: str, revision: str, choose: Choose) -> tuple[str, dict[str, Path]]:
    """Commit, and local paths of the chosen files by their names in the repository.

    Raises ArtifactError if the repository is not there (66) or the hub cannot be reached (69), ConfigError if the
    client is not installed.
    """
    return _fetch_hf(name, revision, choose) if hub == "hf" else _fetch_ms(name, revision, choose)


def _fetch_hf(name: str, revision: str, choose: Choose) -> tuple[str, dict[str, Path]]:
    try:
        from huggingface_hub import HfApi, errors, hf_hub_download
    except ImportError as fault:
        raise ConfigError("hf: needs huggingface_hub; pip install 'postmill[hub]'") from fault

    def download(file: str, commit: str) -> Path:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=commit))

    try:
        info = HfApi().dataset_info(name, revision=revision or None)
        commit = info.sha or revision
        names = [sibling.rfilename for sibling in info.siblings or []]
        card = download(CARD, commit).read_text("utf-8", errors="replace") if CARD in names else ""
        return commit, {file: download(file, commit) for file in choose(names, card)}
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as fault:
        raise ArtifactError(f"hf:{name}: {_reason(fault)}", NO_INPUT) from fault
    except (OSError, errors.HTTPError) as fault:  # type: ignore[attr-defined]  # of the HTTP library this client uses
        raise ArtifactError(
            f"hf:{name}: the hub cannot be reached: {_reason(fault)}; try again later", UNAVAILABLE
        ) from fault


def _fetch_ms(name: str, revision: str, choose: Choose) -> tuple[str, dict[str, Path]]:
    try:
        from modelscope_hub import HubApi
        from modelscope_hub.errors import HubError, NotExistError, NotFoundError
    except ImportError as fault:
        raise ConfigError("ms: needs modelscope-hub; pip install 'postmill[hub]'") from fault
    hub = HubApi()

    revision = revision or "master"
    try:
        listed = {
            item.path: item for item in hub.list_repo_files(name, "dataset", revision=revision) if not item.is_dir
        }

        def download(file: str) -> Path:
            digest = listed[file].sha256 or None
            return Path(hub.download_file(name, "dataset", file, revision=revision, expected_sha256=digest))

        card = download(CARD).read_text("utf-8", errors="replace") if CARD in listed else ""
        return revision, {file: download(file) for file in choose(list(listed), card)}
    except (NotExistError, NotFoundError) as fault:
        raise ArtifactError(f"ms:{name}: {_reason(fault)}", NO_INPUT) from fault
    except (HubError, OSError) as fault:
        raise ArtifactError(
            f"ms:{name}: the hub cannot be reached: {_reason(fault)}; try again later", UNAVAILABLE
        ) from fault


def _reason(fault: BaseException) -> str:
    text = " ".join(str(fault).split())
    return (text[:1].lower() + text[1:])[:200]
