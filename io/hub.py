"""Repositories of Hugging Face and ModelScope: named, pinned, and fetched into the caches of the hubs' own clients.

    fetched = fetch(parse_repository("hf:owner/name@main"), choose)
    fetched.source  # hf:owner/name@<commit>
    fetched.files  # {"config.json": Path(...), ...}

`choose` says which of the repository's files to fetch, from their names alone, so nothing else is ever downloaded.
Endpoints and tokens are the clients' business (HF_ENDPOINT, HF_TOKEN, MODELSCOPE_ENDPOINT and so on). Hugging Face pins
a revision to a commit. ModelScope tells no commit, so there every file is checked against the SHA-256 of the listing.
What a hub answers is checked before it becomes a path: file names stay inside the repository's folder.
"""

import contextlib
import errno
import functools
import glob
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from postmill.io.errors import NO_INPUT, REFUSED, UNAVAILABLE, ArtifactError, ConfigError

PREFIXES: dict[str, Literal["hf", "ms"]] = {"hf::": "hf", "ms::": "ms", "hf:": "hf", "ms:": "ms"}
"""What a reference to a hub begins with; the double colon is how ms-swift writes it."""
CARD = "README.md"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_OWNED_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WORKERS = 4
_LATEST = {"hf": "main", "ms": "master"}
_SITES = {"hf": "Hugging Face", "ms": "ModelScope"}
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})

Choose = Callable[[list[str], str], list[str]]
"""From all names in a repository and the text of its card to the names of the files to fetch. The card is read for data
sets only, and empty otherwise."""
Report = Callable[[int, int], None]
"""Called with bytes fetched so far, and bytes to fetch as far as they are known."""


class Repository(msgspec.Struct, frozen=True):
    """A repository on a hub, at a branch, tag or commit. An empty revision is the newest state."""

    hub: Literal["hf", "ms"]
    name: str
    revision: str = ""
    type: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return f"{self.hub}:{self.name}" + (f"@{self.revision}" if self.revision else "")


class Fetched(msgspec.Struct, frozen=True):
    """Files of a repository in its client's cache."""

    repository: Repository
    revision: str
    """The commit they are of; for ModelScope, which tells none, the branch or tag."""
    folder: Path
    """Where the repository's files lie."""
    files: dict[str, Path]
    """The chosen files by their names in the repository."""

    @property
    def source(self) -> str:
        """`hf:owner/name@commit`, as manifests record it."""
        return f"{self.repository.hub}:{self.repository.name}@{self.revision}"


def is_offline() -> bool:
    """Whether nothing may be fetched: `--offline`, or HF_HUB_OFFLINE, which that flag sets for this process."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def go_offline() -> None:
    """Fetch nothing from here on, in this process and those it starts. Call it before a client is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def looks_owned(text: str) -> bool:
    """Whether `text` is written like `owner/name` or `owner/name@revision`, as everybody writes a model of a hub."""
    return _OWNED_NAME.fullmatch(text) is not None


def parse_repository(text: str, kind: Literal["model", "dataset"] = "model") -> Repository:
    """`hf:owner/name[@revision]`, `ms:...`, or without a prefix for Hugging Face. Raises ConfigError (2)."""
    prefix = next((prefix for prefix in PREFIXES if text.startswith(prefix)), "")
    name, at, revision = text.removeprefix(prefix).partition("@")
    if not _NAME.fullmatch(name) or ".." in name or (at and (not _REVISION.fullmatch(revision) or ".." in revision)):
        shown = prefix or "hf:"
        raise ConfigError(f"{text}: expected an id like {shown}owner/name or {shown}owner/name@revision")
    return Repository(PREFIXES.get(prefix, "hf"), name, revision, kind)


def fetch(repository: Repository, choose: Choose, report: Report | None = None) -> Fetched:
    """The chosen files, from the cache or the hub. Offline, from the cache alone.

    Raises ArtifactError: 66 if repository, revision or cached files are not there, 69 if the hub cannot be reached or
    a file does not arrive whole, 77 for names that lead out of the repository; ConfigError (2) if the client is not
    installed. Raises what `choose` raises.
    """
    with _translated(repository):
        if repository.hub == "hf":
            return _fetch_hf(repository, choose, report)
        return _fetch_ms(repository, choose, report)


@functools.cache  # one process sees one state of a branch
def newest_commit(repository: Repository) -> str:
    """The commit that a branch or tag is at, asked for once. Empty for ModelScope, which tells none.

    Offline, what the cache knows, or nothing. Raises as `fetch` does.
    """
    if repository.hub != "hf":
        return ""
    with _translated(repository):
        if is_offline() or _COMMIT.fullmatch(repository.revision):
            cached = _cached_hf(repository)
            return repository.revision if _COMMIT.fullmatch(repository.revision) else cached[0] if cached else ""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.file_download import repo_folder_name

        look: Any = HfApi().dataset_info if repository.type == "dataset" else HfApi().model_info
        commit = _commit_of(repository, look(repository.name, revision=repository.revision or None))
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository.name, repo_type=repository.type)
        _remember(repository, commit, folder)
        return commit


def _commit_of(repository: Repository, info: Any) -> str:
    """The commit that the hub names. Raises ArtifactError (77) if it is none."""
    commit = str(info.sha or "")
    if not _COMMIT.fullmatch(commit):
        raise ArtifactError(f"{repository}: the hub names the commit {commit!r}, which is none; refuse it", REFUSED)
    return commit


def _remember(repository: Repository, commit: str, folder: Path) -> None:
    """So that the branch is found again offline, as the client itself does for a revision that is no commit."""
    ref = folder / "refs" / (repository.revision or _LATEST["hf"])
    if not _COMMIT.fullmatch(ref.name):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="utf-8")


def _fetch_hf(repository: Repository, choose: Choose, report: Report | None) -> Fetched:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    cached = _cached_hf(repository) if is_offline() or _COMMIT.fullmatch(repository.revision) else None
    if cached is not None:
        commit, folder, names = cached
        chosen = choose(names, _card(repository, folder, names))
        if is_offline() or all((folder / name).is_file() for name in chosen):
            return _fetched(repository, commit, folder, chosen)
    name, kind = repository.name, repository.type
    look: Any = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    info = look(name, revision=repository.revision or None)
    commit = _commit_of(repository, info)
    names = _safe_names(repository, [sibling.rfilename for sibling in info.siblings or []])
    card = ""
    if kind == "dataset" and CARD in names:
        path = hf_hub_download(name, CARD, repo_type=kind, revision=commit)
        card = Path(path).read_text("utf-8", errors="replace")
    chosen = choose(names, card)
    patterns = [glob.escape(name) for name in chosen]
    bar: Any = _bar(report)
    folder = Path(snapshot_download(name, repo_type=kind, revision=commit, allow_patterns=patterns, tqdm_class=bar))
    _remember(repository, commit, folder.parent.parent)
    return _fetched(repository, commit, folder, chosen)


def _cached_hf(repository: Repository) -> tuple[str, Path, list[str]] | None:
    """Commit, folder, and names of the repository's files as far as the cache knows; None if it has nothing of it."""
    from huggingface_hub import errors, get_cached_repo_tree, snapshot_download

    name, kind, revision = repository.name, repository.type, repository.revision or None
    try:
        nothing: list[str] = []  # whether the files that matter are whole is for the caller to say
        snapshot = snapshot_download(
            name, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=nothing
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    folder = Path(snapshot)
    try:
        tree = get_cached_repo_tree(name, repo_type=kind, revision=folder.name)
        names = [file.path for file in tree]
    except errors.CachedRepoTreeNotFoundError:
        names = _names_in(folder)
    return folder.name, folder, _safe_names(repository, names)


def _fetch_ms(repository: Repository, choose: Choose, report: Report | None) -> Fetched:
    from concurrent.futures import ThreadPoolExecutor

    from modelscope_hub import HubApi

    hub, name, kind = HubApi(), repository.name, repository.type
    revision = repository.revision or _LATEST["ms"]
    if is_offline():
        folder = Path(hub.download_repo(name, kind, revision=revision, local_files_only=True))
        names = _safe_names(repository, _names_in(folder))
        return _fetched(repository, revision, folder, choose(names, _card(repository, folder, names)))
    listed = {item.path: item for item in hub.list_repo_files(name, kind, revision=revision) if not item.is_dir}
    names = _safe_names(repository, list(listed))

    def download(file: str) -> Path:
        digest, size = listed[file].sha256 or None, listed[file].size or None
        return Path(hub.download_file(name, kind, file, revision=revision, expected_sha256=digest, file_size=size))

    has_card = kind == "dataset" and CARD in listed
    chosen = choose(names, download(CARD).read_text("utf-8", errors="replace") if has_card else "")
    total, done, files = sum(listed[file].size or 0 for file in chosen), 0, {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        for file, path in zip(chosen, pool.map(download, chosen), strict=True):
            files[file] = path
            done += listed[file].size or 0
            if report:
                report(done, total)
    first = chosen[0] if chosen else ""
    folder = Path(str(files[first]).removesuffix(first)) if first else Path()
    return Fetched(repository, revision, folder, files)


def _fetched(repository: Repository, revision: str, folder: Path, chosen: list[str]) -> Fetched:
    """Raises ArtifactError (66) if a chosen file is not in the cache."""
    missing = [name for name in chosen if not (folder / name).is_file()]
    if missing or not chosen:
        what = f"{missing[0]} is not" if missing else "nothing of it is"
        raise ArtifactError(
            f"{repository}: {what} in the cache, and this run is offline; {_remedy(repository)}", NO_INPUT
        )
    return Fetched(repository, revision, folder, {name: folder / name for name in chosen})


def _remedy(repository: Repository) -> str:
    if repository.type == "dataset":
        return "run it once without --offline and HF_HUB_OFFLINE"
    return f"fetch it first: postmill get {repository}"


def _card(repository: Repository, folder: Path, names: list[str]) -> str:
    path = folder / CARD
    is_there = repository.type == "dataset" and CARD in names and path.is_file()
    return path.read_text("utf-8", errors="replace") if is_there else ""


def _names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _safe_names(repository: Repository, names: list[str]) -> list[str]:
    """The names, none of which leads out of a folder. Raises ArtifactError (77)."""
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise ArtifactError(f"{repository}: lists a file {name!r}, outside the repository; refuse it", REFUSED)
    return names


def _bar(report: Report | None) -> type[Any]:
    """The progress bar that Hugging Face's client updates: silent, but for `report`."""
    import io

    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # it has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **(options | {"file": io.StringIO(), "disable": False}))

        def display(self, *_: Any, **__: Any) -> None:
            # the client counts bytes received and files in bars of their own; this one is bytes on the disk
            if report and self.unit == "B" and str(self.desc).startswith("Reconstruct"):
                report(int(self.n), int(self.total or 0))

    return Bar


@contextlib.contextmanager
def _translated(repository: Repository) -> Iterator[None]:
    """The clients' errors as ours, one line each; what they log beside them is not shown."""
    needed = {"hf": "huggingface_hub", "ms": "modelscope_hub"}[repository.hub]
    try:
        logging.getLogger(needed).setLevel(logging.CRITICAL)
        with _translated_hf(repository) if repository.hub == "hf" else _translated_ms(repository):
            yield
    except ImportError as fault:
        package = needed.replace("_", "-")
        raise ConfigError(f"{repository}: needs {package}; pip install 'postmill[hub]'") from fault


@contextlib.contextmanager
def _translated_hf(repository: Repository) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as fault:
        raise ArtifactError(
            f"{repository}: gated; accept its terms at huggingface.co/{repository.name}, then run hf auth login",
            NO_INPUT,
        ) from fault
    except errors.RevisionNotFoundError as fault:
        raise ArtifactError(f"{repository}: no such revision; name a branch, tag or commit of it", NO_INPUT) from fault
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as fault:
        raise _not_there(repository) from fault
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as fault:
        raise _not_cached(repository, fault) from fault
    except (OSError, errors.HTTPError) as fault:  # type: ignore[attr-defined]  # of the HTTP library this client uses
        raise _unreachable(repository, fault) from fault


@contextlib.contextmanager
def _translated_ms(repository: Repository) -> Iterator[None]:
    from modelscope_hub.errors import (
        AuthenticationError,
        CacheNotFound,
        HubError,
        NotExistError,
        PermissionDeniedError,
    )

    try:
        yield
    except (NotExistError, AuthenticationError, PermissionDeniedError) as fault:
        raise _not_there(repository) from fault
    except CacheNotFound as fault:
        raise _not_cached(repository, fault) from fault
    except (HubError, OSError) as fault:
        raise _unreachable(repository, fault) from fault


def _not_there(repository: Repository) -> ArtifactError:
    log_in = "hf auth login" if repository.hub == "hf" else "modelscope login"
    site = _SITES[repository.hub]
    return ArtifactError(
        f"{repository}: no such {repository.type} on {site}, or it is private; check the name, or log in with {log_in}",
        NO_INPUT,
    )


def _not_cached(repository: Repository, fault: BaseException) -> BaseException:
    if is_offline():
        return ArtifactError(
            f"{repository}: not in the cache, and this run is offline; {_remedy(repository)}", NO_INPUT
        )
    return _unreachable(repository, fault)


def _unreachable(repository: Repository, fault: BaseException) -> BaseException:
    """Exit code 69, but for a disk that is full or closed to us: that error is passed on as it is."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    if isinstance(fault, OSError) and fault.errno in _OF_THE_DISK:
        return fault
    text = " ".join(str(fault).split())
    reason = (text[:1].lower() + text[1:])[:200] or type(fault).__name__
    return ArtifactError(
        f"{repository}: could not be fetched from {_SITES[repository.hub]}: {reason}; try again later, or use what was"
        " fetched before with --offline",
        UNAVAILABLE,
    )
