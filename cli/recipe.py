"""`postmill recipe`: recipes to start from, recipes of other tools read, and recipes written for other programs."""

import sys
from pathlib import Path

from postmill.cli.chain import RECIPES, find_recipe
from postmill.cli.tool import Args, parse
from postmill.io.errors import EXISTS, ArtifactError, ConfigError

USAGE = """
List, show and copy the recipes that come with postmill. `postmill run NAME` runs them as they are.

usage: postmill recipe list
       postmill recipe show NAME
       postmill recipe copy NAME [FILE.toml]     a copy of your own (default: NAME.toml here)
"""


def run(argv: list[str]) -> int:
    """Do what the first word says."""
    args = parse(argv, USAGE)
    if args is None:
        return 0
    verbs = {"list": (_list, 0, 0), "show": (_show, 1, 1), "copy": (_copy, 1, 2)}
    verb = args.words.pop(0) if args.words else ""
    if verb not in verbs:
        raise ConfigError(f"recipe {verb}".rstrip() + f": expected one of {', '.join(verbs)}")
    function, least, most = verbs[verb]
    if not least <= len(args.words) <= most:
        raise ConfigError(next(line.strip() for line in USAGE.splitlines() if f"recipe {verb}" in line))
    return function(args)


def summary(path: Path) -> str:
    """The first sentence of a recipe's own comment."""
    first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
    return first.rstrip(".")


def _list(_: Args) -> int:
    paths = sorted(RECIPES.glob("*.toml"))
    width = max(len(path.stem) for path in paths)
    sys.stdout.write("".join(f"{path.stem:<{width}}  {summary(path)}\n" for path in paths))
    return 0


def _show(args: Args) -> int:
    sys.stdout.write(find_recipe(args.words[0]).read_text(encoding="utf-8"))
    return 0


def _copy(args: Args) -> int:
    source = find_recipe(args.words[0])
    target = Path(args.words[1]) if args.words[1:] else Path(source.name)
    target = target / source.name if target.is_dir() else target
    try:
        with target.open("xb") as file:  # never in place of what somebody has edited
            file.write(source.read_bytes())
    except FileExistsError:
        raise ArtifactError(f"{target}: exists; name another file", EXISTS) from None
    sys.stdout.write(f"{target}\n")
    return 0
