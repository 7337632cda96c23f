"""`postmill push ARTIFACT OWNER/NAME`: a model or an adapter to a hub, with a card that its manifest writes."""

import sys
from pathlib import Path

from postmill.cli.card import card
from postmill.cli.tool import need, parse
from postmill.io.errors import BAD_DATA, ArtifactError, ConfigError
from postmill.io.hub import PREFIXES
from postmill.io.manifest import MANIFEST, load_artifact, verify_files

USAGE = """
Send a model or an adapter to Hugging Face or ModelScope, with a card made from its manifest.

usage: postmill push ARTIFACT [ms:]OWNER/NAME [--revision BRANCH] [--private]

  postmill push run/ mill/tiny-adapter                one commit: weights, configs, tokenizer, metrics, README.md
  postmill push tuned/ mill/tiny --private            a repository that only its owner sees, if it is not there yet
  postmill push tuned/ ms:mill/tiny                   to ModelScope
  postmill push run/ mill/tiny-adapter --dry-run      print the card and the names of the files; send nothing

Every file is checked against the manifest first. Log in once with `hf auth login` or `modelscope login`, or set
HF_TOKEN or MODELSCOPE_API_TOKEN. A README.md of the artifact itself is sent instead of a card. What only says where the
run was made (paths, host) stays here.

  --revision BRANCH   commit to this branch, which must be there
  --private           make the repository private if it is new
  --dry-run           send nothing
  --quiet             no progress (-q)
"""


def run(argv: list[str]) -> int:
    """Print the address of the commit, or the card."""
    argv = ["--quiet" if word == "-q" else word for word in argv]
    args = parse(argv, USAGE, switches=("--private", "--dry-run", "--quiet"), valued=("--revision",))
    if args is None:
        return 0
    need(args, 2, 2, USAGE)
    folder, to = Path(args.words[0]), args.words[1]
    prefix = next((prefix for prefix in PREFIXES if to.startswith(prefix)), "")
    name = to.removeprefix(prefix)
    if name.count("/") != 1 or ":" in name:
        raise ConfigError(f"{to}: expected OWNER/NAME of Hugging Face, or ms:OWNER/NAME, like mill/tiny-adapter")
    artifact = load_artifact(folder, ("model", "adapter"))
    faults = verify_files(artifact)
    if faults:
        raise ArtifactError(f"{faults[0]}; make the artifact again", BAD_DATA)
    files: dict[str, Path | bytes] = {entry.path: artifact.file(entry.path) for entry in artifact.manifest.files}
    files[MANIFEST] = artifact.file(MANIFEST)
    files.setdefault("README.md", card(artifact, name).encode())
    if args.has("--dry-run"):
        readme = files["README.md"]
        sys.stdout.write(readme.decode() if isinstance(readme, bytes) else readme.read_text("utf-8"))
        sys.stdout.write("".join(f"{file}\n" for file in sorted(files)))
        return 0
    from postmill.io.hub_push import push_hf, push_ms
    from postmill.stages.progress import Progress

    with Progress.install(quiet=args.has("--quiet")):
        Progress.show(f"push: {len(files)} files to {to}")
        push = push_ms if PREFIXES.get(prefix) == "ms" else push_hf
        address = push(name, files, revision=args.options.get("--revision"), private=args.has("--private"))
    sys.stdout.write(f"{address}\n")
    return 0
