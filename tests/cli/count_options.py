"""What share of the options in other tools' own example configs `recipe import` carries over, or names.

usage: python tests/cli/count_options.py TOOL=FOLDER...   with checkouts of their repositories, no part of ours

Not a test: it reads what others wrote. Files that no reader knows are left out.
"""

import importlib
import sys
from collections import Counter
from pathlib import Path

from postmill.cli.coming_from.read import read_config
from postmill.cli.coming_from.write import check, convert
from postmill.io.errors import ConfigError
from postmill.stages.table import STAGES


def count(tool: str, folder: Path) -> tuple[int, Counter[str], Counter[str]]:
    """Configs read, options by status, and the names that are not known."""
    declared = {name: importlib.import_module(f"postmill.stages.{name}.config").STAGE for name in STAGES}
    files, statuses, unknown = 0, Counter[str](), Counter[str]()
    for path in sorted(folder.rglob("*")):
        if path.suffix not in ((".sh",) if tool == "ms-swift" else (".yaml", ".yml")):
            continue
        try:
            configs = read_config(path, tool)
        except (ConfigError, UnicodeDecodeError):
            continue
        files += len(configs)
        for config in configs:
            try:
                lines = check(convert(config), declared).lines
            except ConfigError:  # a task that has no chain
                files -= 1
                continue
            statuses.update(line.status for line in lines)
            unknown.update(line.name for line in lines if line.status == "unknown")
    return files, statuses, unknown


if __name__ == "__main__":
    for word in sys.argv[1:]:
        name, _, where = word.partition("=")
        number, found, names = count(name, Path(where))
        total = sum(found.values())
        shares = ", ".join(f"{status} {found[status] / total:.1%}" for status in sorted(found))
        sys.stdout.write(f"{name}: {number} configs, {total} options: {shares}\n  {names.most_common(12)}\n")
