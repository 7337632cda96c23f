"""`postmill verify`: is an artifact what its manifest says?"""

import sys

from postmill.cli.tool import need, open_artifact, parse
from postmill.io.errors import BAD_DATA
from postmill.io.manifest import verify_files

USAGE = """
Check artifacts against their manifests: files, sizes, and the digest of every byte. Exit 65 if one differs.

usage: postmill verify ARTIFACT... [--quick]

  --quick   sizes only
"""


def run(argv: list[str]) -> int:
    """0 if every artifact is whole, 65 with a line for each fault."""
    args = parse(argv, USAGE, switches=("--quick",))
    if args is None:
        return 0
    need(args, 1, 10**6, USAGE)
    code = 0
    for word in args.words:
        artifact = open_artifact(word)
        faults = [] if args.has("--quick") else verify_files(artifact)
        for fault in faults:
            sys.stderr.write(f"postmill verify: error: {fault}\n")
            code = BAD_DATA
        if not faults:
            sys.stdout.write(f"{word}: whole, {len(artifact.manifest.files)} files, {artifact.digest}\n")
    return code
