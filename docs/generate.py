"""Pages that are made from the code: run `python docs/generate.py` after a change; a test compares them.

Each page keeps what people wrote above and below the two comment lines that hold the generated part.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from support import BEGIN, END, features

from postmill.cli.chain import RECIPES
from postmill.cli.coming_from import grpo
from postmill.cli.coming_from.read import TOOLS, rules_of
from postmill.cli.coming_from.rule import Rule, rules_by_name
from postmill.cli.help import flag_name
from postmill.cli.recipe import summary

DOCS = Path(__file__).resolve().parent


def recipes() -> str:
    """A section a recipe, from its own comment."""
    parts = []
    for path in sorted(RECIPES.glob("*.toml")):
        head = path.read_text(encoding="utf-8").partition("\n\n")[0]
        lines = [line.removeprefix("#").removeprefix(" ") for line in head.splitlines()[1:]]
        body = "\n".join(f"    {line.strip()}" if line.startswith("  ") else line for line in lines)
        parts.append(f"## {path.stem}\n\n{summary(path)}.\n\n{_spaced(body).strip(chr(10))}")
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _spaced(text: str) -> str:
    """Blank lines around commands, one at a time."""
    text = re.sub(r"\n+(    .*(?:\n    .*)*)\n+", r"\n\n\1\n\n", "\n" + text + "\n")
    return text.rstrip()


def options_of(tool: str) -> str:
    """A row for each rule by which `recipe import` reads a tool's config."""
    known = rules_of(tool)
    count = sum(bool(name) for name in known)
    made = f"What `postmill recipe import` makes of each option ({count} of them):\n\n{_rows(known)}"
    if tool in grpo.TOOLS:
        rows = _rows(rules_by_name(grpo.RULES))
        made += f"\nOf GRPO, which becomes a recipe of `postmill loop`, these instead:\n\n{rows}"
    return made


def _rows(known: dict[str, Rule]) -> str:
    rules = {id(rule): rule for rule in known.values()}.values()
    rows = []
    for rule in sorted(rules, key=lambda rule: (not rule.ours, rule.is_missing)):
        theirs = ", ".join(f"`{name}`" for name in rule.theirs if name and known[name] is rule)
        rows.append(f"| {theirs} | {_ours(rule)} | {rule.note or ''} |".replace("  |", " |"))
    return "| theirs | ours | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _ours(rule: Rule) -> str:
    section, _, option = rule.ours.partition(".")
    if not rule.ours:
        return "not there" if rule.is_missing else "nothing to say"
    if not option:
        return {"model": "`-m`", "data": "data, behind the recipe or at its top", "output": "`-o`"}[section]
    if section == "loop":
        return f"`[loop] {option}`"
    stage = importlib.import_module(f"postmill.stages.{section}.config").STAGE
    port = stage.inputs.get(option)
    return f"`{section} {port.flag or option.upper() if port else flag_name(option)}`"


def oracles() -> str:
    """How near each objective is to others' losses, and to itself however a step is cut; from `oracles.json`."""
    found = json.loads((DOCS / "oracles.json").read_text(encoding="utf-8"))
    rows = ["| objective | compared with | cases | loss | gradient |", "|---|---|---|---|---|"]
    for name, line in found.items():
        objective, _, oracle = name.partition("|")
        loss, gradient = (f"{line[key]:.0e}" if key in line else "" for key in ("loss", "gradient"))
        rows.append(f"| `{objective}` | {oracle} | {line['cases']} | {loss} | {gradient} |")
    return "\n".join(rows) + "\n"


def contents() -> str:
    """A line a page: where it is, and its first sentence."""
    lines = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        first = next((part for part in text.split("\n\n")[1:] if part[0].isalpha() or re.match("`[^`]", part)), "")
        about = re.split(r"(?<=[.:]) ", " ".join(first.split()))[0].rstrip(":")
        lines.append(f"- [{title}](docs/{path.name}): {about}")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "recipes.md": recipes,
    "support.md": features,
    "exactness.md": oracles,
    "../llms.txt": contents,
    **{f"coming-from-{tool}.md": partial(options_of, tool) for tool in TOOLS},
}
"""Page -> what makes its generated part."""


def made(name: str) -> str:
    """The whole page as it should be."""
    text = (DOCS / name).read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{PAGES[name]()}{END}{after}"


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / page).write_text(made(page), encoding="utf-8")
        sys.stdout.write(f"{page}\n")
