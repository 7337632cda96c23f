"""Files to a repository of Hugging Face or ModelScope, in one commit, through the hub's own client."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from postmill.io.errors import NO_INPUT, UNAVAILABLE, ArtifactError, ConfigError, StageError

_MESSAGE = "Postmill: weights and card"


def push_hf(name: str, files: Mapping[str, Path | bytes], *, revision: str | None, private: bool) -> str:
    """Commit `files` (name in the repository -> a file, or its bytes) to `name`, which is made if it is not there.

    Returns the commit's address. Raises ArtifactError (66) without a login or a place to write to, StageError (69)
    where the hub cannot be reached, ConfigError (2) without the client.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi, errors
    except ImportError:
        raise ConfigError(f"{name}: needs huggingface-hub; pip install 'postmill[hub]'") from None
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    operations = [CommitOperationAdd(path, given) for path, given in sorted(files.items())]
    api = HfApi(library_name="postmill")
    try:
        api.create_repo(name, exist_ok=True, private=private or None)
        commit = api.create_commit(name, operations, commit_message=_MESSAGE, revision=revision)
    except errors.RevisionNotFoundError as fault:
        raise ArtifactError(f"hf:{name}: no branch {revision}; make it on the hub first", NO_INPUT) from fault
    except (errors.HfHubHTTPError, errors.HFValidationError) as fault:
        status = getattr(getattr(fault, "response", None), "status_code", None)
        if status is not None and status >= 500:
            raise StageError(f"hf:{name}: Hugging Face answers {status}; try again later", UNAVAILABLE) from fault
        said = str(fault).strip().partition("\n")[0]
        raise ArtifactError(
            f"hf:{name}: not written ({said}); check the name, and log in with hf auth login and a token that may"
            " write",
            NO_INPUT,
        ) from fault
    except (OSError, errors.HTTPError) as fault:  # type: ignore[attr-defined]  # of the HTTP library this client uses
        raise StageError(f"hf:{name}: Hugging Face cannot be reached ({fault})", UNAVAILABLE) from fault
    return str(commit.commit_url)


def push_ms(name: str, files: Mapping[str, Path | bytes], *, revision: str | None, private: bool) -> str:
    """The same to ModelScope. Returns the repository's address. Raises as `push_hf` does."""
    try:
        from modelscope_hub import HubApi, HubConfig, errors
    except ImportError:
        raise ConfigError(f"ms:{name}: needs modelscope-hub; pip install 'postmill[hub]'") from None
    logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
    config = HubConfig()
    api = HubApi(config, user_agent="postmill")
    try:
        if not api.repo_exists(name, "model"):
            api.create_repo(name, "model", visibility="private" if private else "public")
        # it prints a report of its own, and what we print is the address
        with tempfile.TemporaryDirectory(prefix="postmill-push-") as folder, contextlib.redirect_stdout(io.StringIO()):
            _lay_out(Path(folder), files)
            api.upload_folder(
                name,
                "model",
                folder,
                commit_message=_MESSAGE,
                revision=revision,
                use_cache=False,
                disable_tqdm=True,
            )
    except errors.ServerError as fault:
        raise StageError(f"ms:{name}: ModelScope answers {fault.status_code}; try again later", UNAVAILABLE) from fault
    except errors.APIError as fault:
        said = str(fault).strip().partition("\n")[0]
        raise ArtifactError(
            f"ms:{name}: not written ({said}); check the name and the branch, and log in with modelscope login",
            NO_INPUT,
        ) from fault
    except (errors.HubError, OSError) as fault:
        raise StageError(f"ms:{name}: ModelScope cannot be reached ({fault})", UNAVAILABLE) from fault
    return f"{config.endpoint}/models/{name}"


def _lay_out(folder: Path, files: Mapping[str, Path | bytes]) -> None:
    """The client sends a folder: links to the files, in one."""
    for path, given in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(given, bytes):
            place.write_bytes(given)
        else:
            place.symlink_to(given.resolve())
