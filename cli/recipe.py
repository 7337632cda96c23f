"""`postmill recipe`: recipes to start from, recipes of other tools read, and recipes written for other programs."""

import sys
from pathlib import Path

from postmill.cli.chain import RECIPES, find_recipe
from postmill.cli.tool import Args, parse
from postmill.io.errors import EXISTS, FAILED, ArtifactError, ConfigError
from postmill.stages.tables import closest

USAGE = """
Recipes that come with postmill, and recipes as files for other programs. `postmill run NAME` runs them as they are.

usage: postmill recipe list
       postmill recipe show NAME
       postmill recipe copy NAME [FILE.toml]     a copy of your own (default: NAME.toml here)
       postmill recipe import FILE [--of TOOL] [--strict]
       postmill recipe export RECIPE [DATA...] [-m MODEL] -o FOLDER --to FORM [--set KEY=VALUE]

  postmill recipe export sft chats.jsonl -m base/ -o out/ --to make > Makefile

  postmill recipe import axolotl.yml > recipe.toml

  --of TOOL        whose config FILE is: ms-swift, llama-factory, axolotl, trl or deepspeed (default: told by its
                   options). FILE is YAML, TOML or JSON, or a shell script with commands of ms-swift or TRL; what
                   could not be carried over is said line by line on stderr, and in the recipe
  --strict         fail (1) if anything could not be carried over
  --to FORM        shell, make, airflow, snakemake, dvc, slurm, k8s or ray; printed on stdout
  -o, -m, --set, --from, --to-section
                   as run has them; its --to is --to-section here
"""


def run(argv: list[str]) -> int:
    """Do what the first word says."""
    if argv[:1] == ["export"] and "-h" not in argv and "--help" not in argv:
        return _export(argv[1:])
    args = parse(argv, USAGE, switches=("--strict",), valued=("--of",))
    if args is None:
        return 0
    verbs = {"list": (_list, 0, 0), "show": (_show, 1, 1), "copy": (_copy, 1, 2), "import": (_import, 1, 1)}
    verb = args.words.pop(0) if args.words else ""
    known = [*verbs, "export"]
    if verb not in verbs:
        raise ConfigError(f"recipe {verb}".rstrip() + f": expected one of {', '.join(known)}{closest(verb, known)}")
    function, least, most = verbs[verb]
    if not least <= len(args.words) <= most:
        raise ConfigError(next(line.strip() for line in USAGE.splitlines() if f"recipe {verb}" in line))
    return function(args)


def summary(path: Path) -> str:
    """The first sentence of a recipe's own comment."""
    first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
    return first.rstrip(".")


def _list(_: Args) -> int:
    paths = sorted(RECIPES.glob("*.toml"), key=lambda path: path.stem)
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


def _import(args: Args) -> int:
    """Print the recipe of another tool's config."""
    import importlib

    from postmill.cli.coming_from.read import TOOLS, read_config
    from postmill.cli.coming_from.write import check, convert, to_toml
    from postmill.stages.table import STAGES

    tool = args.options.get("--of", "")
    if tool and tool not in TOOLS:
        raise ConfigError(f"--of {tool}: no such tool{closest(tool, list(TOOLS))}; one of {', '.join(TOOLS)}")
    path = Path(args.words[0])
    configs = read_config(path, tool)
    if len(configs) > 1:
        sys.stderr.write(f"{path}: {len(configs)} commands; the first one is read\n")
    declared = {name: importlib.import_module(f"postmill.stages.{name}.config").STAGE for name in STAGES}
    imported = check(convert(configs[0]), declared)
    for line in imported.lines:
        if line.status in ("missing", "unknown", "refused"):
            sys.stderr.write(f"{line.place}: {line.name}: {line.note}\n")
        elif line.note:
            sys.stderr.write(f"{line.place}: {line.name}: {line.status}; {line.note}\n")
    sys.stdout.write(to_toml(imported, path.name))
    return FAILED if args.has("--strict") and imported.count("missing", "unknown", "refused") else 0
