"""`postmill get MODEL`: fetch a model from a hub, and print the folder it is in."""

import shutil
import sys
from pathlib import Path

from postmill.cli.tool import need, parse
from postmill.io.commit import Staging
from postmill.io.errors import EXISTS, ArtifactError
from postmill.io.model_folder import all_model_files, model_digest

USAGE = """
Fetch a model from Hugging Face or ModelScope, and print the folder it is in.

usage: postmill get MODEL [-o FOLDER]

  postmill get HuggingFaceTB/SmolLM2-135M-Instruct             Hugging Face, the newest state
  postmill get hf:HuggingFaceTB/SmolLM2-135M-Instruct@v1.0     a branch, tag or commit of it
  postmill get ms:Qwen/Qwen3-0.6B -o base/                     ModelScope, copied to base/

Weights in safetensors, configs, tokenizer and chat templates are fetched; code and pickles never are. Files are kept in
the hub's own cache (HF_HOME, MODELSCOPE_CACHE), so a second call fetches nothing. Every -m takes the same names.

  -o FOLDER   copy the model there, too
  --offline   fetch nothing; say where it is if it was fetched before
  --quiet     no progress (-q)
"""


def run(argv: list[str]) -> int:
    """Print the folder on stdout, and which commit it is on stderr."""
    argv = ["--quiet" if word == "-q" else "--output" if word == "-o" else word for word in argv]
    args = parse(argv, USAGE, switches=("--offline", "--quiet"), valued=("--output",))
    if args is None:
        return 0
    need(args, 1, 1, USAGE)
    if args.has("--offline"):
        from postmill.io.hub import go_offline

        go_offline()
    from postmill.stages.progress import Progress
    from postmill.stages.shared.model_reference import find_model

    target = Path(args.options["--output"]) if args.has("--output") else None
    with Progress.install(quiet=args.has("--quiet")):
        model = find_model(args.words[0])
        digest = model_digest(model.path)  # every safetensors header is checked
        if target is not None:
            _copy(model.path, digest, target)
        Progress.show(f"get: {model.source or f'{model.path} is a folder here'}")
    sys.stdout.write(f"{target or model.path}\n")
    return 0


def _copy(model: Path, digest: str, target: Path) -> None:
    """Make `target` a copy, unless it is one. Raises ArtifactError (73) if it is something else."""
    if target.exists():
        if not target.is_dir() or model_digest(target) != digest:
            raise ArtifactError(f"{target}: exists and is another model; choose another -o", EXISTS)
        return
    with Staging(target) as staging:
        for name, path in all_model_files(model).items():
            (staging.path / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, staging.path / name)
        staging.commit_folder()
