"""Files to a repository of Hugging Face, in one commit, through the hub's own client."""

import logging
from collections.abc import Mapping
from pathlib import Path

from postmill.io.errors import NO_INPUT, UNAVAILABLE, ArtifactError, ConfigError, StageError


def push(name: str, files: Mapping[str, Path | bytes], *, revision: str | None, private: bool) -> str:
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
        commit = api.create_commit(name, operations, commit_message="Postmill: weights and card", revision=revision)
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
