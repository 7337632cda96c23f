"""What share of the options in other tools' own example configs `recipe import` carries over, or names.

usage: python tests/cli/count_options.py TOOL=FOLDER...   with checkouts of their repositories, no part of ours

TRL has one config, and its commands in documents and at the heads of scripts: those are read too.

Not a test: it reads what others wrote. Files that no reader knows are left out.
"""

import importlib
import sys
from collections import Counter
from pathlib import Path

from postmill.cli.coming_from.read import Config, commands_in, read_config
from postmill.cli.coming_from.write import check, convert
from postmill.io.errors import ConfigError
from postmill.stages.table import STAGES

_KINDS = {"ms-swift": (".sh",), "trl": (".yaml", ".yml", ".py", ".md")}


def _configs(tool: str, path: Path) -> list[Config]:
    """What a file holds for a tool."""
    if path.suffix not in _KINDS.get(tool, (".yaml", ".yml")):
        return []
    try:
        if path.suffix in (".py", ".md"):
            found = commands_in(path.read_text(encoding="utf-8"), str(path))
            return [config for config in found if config.tool == tool and len(config.options) > 2]
        return read_config(path, tool)
    except (ConfigError, UnicodeDecodeError):
        return []


_LEFT = ("missing", "refused", "unknown")


def count(tool: str, folder: Path) -> tuple[int, Counter[str], Counter[str]]:
    """Configs read, options by status, and the names of those that were left out."""
    declared = {name: importlib.import_module(f"postmill.stages.{name}.config").STAGE for name in STAGES}
    files, statuses, left = 0, Counter[str](), Counter[str]()
    for path in sorted(folder.rglob("*")):
        configs = _configs(tool, path)
        files += len(configs)
        for config in configs:
            try:
                lines = check(convert(config), declared).lines
            except ConfigError:  # a task that has no chain
                files -= 1
                continue
            statuses.update(line.status for line in lines)
            left.update(f"{line.name} ({line.status})" for line in lines if line.status in _LEFT)
    return files, statuses, left


if __name__ == "__main__":
    for word in sys.argv[1:]:
        name, _, where = word.partition("=")
        number, found, names = count(name, Path(where))
        total = sum(found.values())
        share = 1 - sum(found[status] for status in _LEFT) / total
        shares = ", ".join(f"{status} {found[status] / total:.1%}" for status in sorted(found))
        sys.stdout.write(
            f"{name}: {number} configs, {total} options: {share:.1%} in the recipe or needless: {shares}\n"
        )
        sys.stdout.write("".join(f"  {times:4} {option}\n" for option, times in names.most_common()))
