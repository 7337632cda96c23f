"""`postmill recipe`: recipes to start from, recipes of other tools read, and recipes written for other programs."""

import sys
from pathlib import Path

from postmill.cli.chain import RECIPES, find_recipe
from postmill.cli.tool import Args, parse
from postmill.io.errors import EXISTS, ArtifactError, ConfigError
from postmill.stages.tables import closest

USAGE = """
Recipes that come with postmill, and recipes as files for other programs. `postmill run NAME` runs them as they are.

usage: postmill recipe list
       postmill recipe show NAME
       postmill recipe copy NAME [FILE.toml]     a copy of your own (default: NAME.toml here)
       postmill recipe export RECIPE [DATA...] [-m MODEL] -o FOLDER --to FORM [--set KEY=VALUE]

  postmill recipe export sft chats.jsonl -m base/ -o out/ --to make > Makefile

  --to FORM        shell, make, airflow, snakemake, dvc or slurm; printed on stdout
  -o, -m, --set, --from, --to-section
                   as run has them; its --to is --to-section here
"""


def run(argv: list[str]) -> int:
    """Do what the first word says."""
    if argv[:1] == ["export"] and "-h" not in argv and "--help" not in argv:
        return _export(argv[1:])
    args = parse(argv, USAGE)
    if args is None:
        return 0
    verbs = {"list": (_list, 0, 0), "show": (_show, 1, 1), "copy": (_copy, 1, 2)}
    verb = args.words.pop(0) if args.words else ""
    if verb not in verbs:
        raise ConfigError(f"recipe {verb}".rstrip() + f": expected one of {', '.join([*verbs, 'export'])}")
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


def _export(argv: list[str]) -> int:
    """Print a recipe in the form of another program."""
    from postmill.cli.export import FORMS
    from postmill.cli.run import chosen_steps, settings_of

    rest, settings = settings_of(argv)
    args = parse(rest, USAGE, valued=("--to", "--output", "--model", "--from", "--to-section"))
    if args is None:
        return 0
    form = args.options.get("--to", "")
    if form not in FORMS:
        raise ConfigError(f"export: --to {form}: no such form{closest(form, list(FORMS))}; one of {', '.join(FORMS)}")
    steps = chosen_steps(args, settings, last=args.options.get("--to-section", ""))
    sys.stdout.write(FORMS[form](steps))
    return 0
