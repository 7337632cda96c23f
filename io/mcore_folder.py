"""A checkpoint of Megatron-Core on disk, found without reading it.

Megatron keeps a folder for each iteration and names the newest in `latest_checkpointed_iteration.txt`; `release` is one
that was converted. In it lie `metadata.json`, which says that the format is `torch_dist`, `.metadata`, which says where
each tensor lies, and the tensors in `*.distcp` files, in parts that do not depend on how ranks were laid out.
"""

from pathlib import Path

from postmill.io.digest import digest_files
from postmill.io.errors import BAD_DATA, NO_INPUT, ArtifactError
from postmill.io.json_file import load_json

LATEST, FORMAT, INDEX, COMMON = "latest_checkpointed_iteration.txt", "metadata.json", ".metadata", "common.pt"


def is_mcore(path: Path) -> bool:
    """Whether `path` is a checkpoint of Megatron, or a folder of them."""
    return (path / LATEST).is_file() or ((path / FORMAT).is_file() and (path / INDEX).is_file())


def newest(path: Path) -> Path:
    """The folder with the tensors. Raises ArtifactError: 66 if it is not there, 65 if the format is another one."""
    folder = path
    if (path / LATEST).is_file():
        said = (path / LATEST).read_text(errors="replace").strip()
        folder = path / (f"iter_{int(said):07d}" if said.isdecimal() else "release")
        if not said.isdecimal() and said != "release":
            raise ArtifactError(f"{path / LATEST}: {said[:40]!r}, expected a number or release; get it again", BAD_DATA)
    if not (folder / FORMAT).is_file() or not (folder / INDEX).is_file():
        raise ArtifactError(
            f"{folder}: no {FORMAT} and {INDEX} in it; save it with Megatron's --ckpt-format torch_dist", NO_INPUT
        )
    kind = load_json(folder / FORMAT).get("sharded_backend")
    if kind != "torch_dist":
        raise ArtifactError(
            f"{folder / FORMAT}: format {kind!r}, expected torch_dist; save it with --ckpt-format torch_dist", BAD_DATA
        )
    return folder


def mcore_digest(path: Path) -> str:
    """Digest of the newest checkpoint in `path`, and of the model's config beside it."""
    folder = newest(path)
    files = {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}
    files |= {f"../{name}": path / name for name in ("config.json", "tokenizer.json") if (path / name).is_file()}
    return digest_files(files)
