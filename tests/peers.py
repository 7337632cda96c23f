"""How far Postmill agrees with its peers, as numbers that cannot fall unseen.

    .venv/bin/python tests/peers.py

Inputs are our own. Expected values of loss scale, agent formats and Jinja are what the peers' code gives
(`tests/ext/data`, `tests/peer_cases`, `tests/stages/shared/agent_formats`; each file names its origin). Those of rows
are written by hand from what the peers' documents and code say, and calls read back are those that were written. A case
is equal, or missing (refused, listed in `tests/peer_cases/MISSING`), or wrong. `tests/test_peers.py` fails if one is
wrong, or if the equal ones become fewer.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from peer_cases.rows import CASES  # noqa: E402
from tiny_encoder import encoder, run, shown  # noqa: E402

from postmill import _native  # noqa: E402
from postmill.stages.shared.agent_formats.read import read_calls  # noqa: E402
from postmill.stages.shared.agent_formats.table import format_json  # noqa: E402
from stages.shared.agent_formats import test_agent_formats as agents  # noqa: E402

AGREED = {"loss scale": 721, "agent formats": 1618, "calls read back": 1869, "Jinja": 688, "rows": 59}
"""Cases that are equal. More is better: raise the number. Fewer is a fault."""

Result = tuple[str, str, str]
"""Group, case, and `equal`, `missing: ...` or `wrong: ...`."""

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<bot>{{ m.content }}<end>"
    "{% else %}<user>{{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def compared(group: str, name: str, found: Any, expected: Any) -> Result:
    return group, name, "equal" if found == expected else f"wrong: {found!r}, expected {expected!r}"


def loss_scale() -> Iterator[Result]:
    fixture = json.loads((HERE / "ext/data/ms_swift_loss_scale.json").read_text())
    for index, (spec, text, query, expected) in enumerate(fixture["cases"]):
        found = _native.LossScale(spec, "ms-swift").segments(text, query)
        yield compared("loss scale", f"{index} {spec}", found, [tuple(pair) for pair in expected])


def agent_formats() -> Iterator[Result]:
    for name in agents.FORMATS:
        for case, row in agents.CASES.items():
            expected = agents.expected(name, case)
            if expected is not None:
                found = agents.in_frame(name, agents.write(name, agents.hugging_face(row), row["tools"]))
                yield compared("agent formats", f"{name} {case}", found, expected)


def calls_read_back() -> Iterator[Result]:
    for name in agents.FORMATS:
        writer = _native.AgentFormat(name, format_json(name))
        for case, row in agents.CASES.items():
            for message in agents.hugging_face(row):
                if "tool_calls" in message and (name, case) not in agents.LOST:
                    asked = [{"role": "user", "content": "?"}, message]
                    text = json.loads(writer.write(json.dumps(asked), json.dumps(row["tools"])))[-1]["content"]
                    calls = [call["function"] for call in message["tool_calls"]]
                    yield compared("calls read back", f"{name} {case}", read_calls(name, text, row["tools"])[1], calls)


def jinja() -> Iterator[Result]:
    fixture = json.loads((HERE / "peer_cases/jinja.json").read_text())
    setup = "".join(f"{{% set {name} = {value} %}}" for name, value in fixture["values"].items())
    messages = json.dumps(fixture["messages"])
    for name, expected in fixture["cases"]:
        source = name if "{%" in name or "{{" in name or "{#" in name else setup + f"{{{{ {name} }}}}"
        try:
            found = _native.ChatTemplate(source).render_text(messages)
        except _native.NativeError as error:
            yield "Jinja", name, f"missing: {error}"
        else:
            yield compared("Jinja", name, found, expected)


def rows() -> Iterator[Result]:
    for index, (peer, row, options, expected) in enumerate(CASES):
        enc = encoder(**({"template": TEMPLATE, "special_texts": [("eos_token", "<end>")]} | options))
        try:
            made = run(enc, row)[0]
        except _native.NativeError as error:
            yield "rows", f"{peer} {index}", f"wrong: {error}"
            continue
        texts = ("".join(f"[{text}]" if weight else text for text, weight in shown(enc, one)) for one in made)
        yield compared("rows", f"{peer} {index}", "|".join(texts), expected)


def results() -> Iterator[Result]:
    for group in (loss_scale, agent_formats, calls_read_back, jinja, rows):
        yield from group()


def known_missing() -> set[tuple[str, str]]:
    lines = (HERE / "peer_cases/MISSING").read_text().splitlines()
    return {(group, name) for group, name in (line.split("\t")[:2] for line in lines)}


def main() -> int:
    found = list(results())
    counts = Counter((group, outcome.partition(":")[0]) for group, _, outcome in found)
    for (group, outcome), number in sorted(counts.items()):
        print(f"{group:16} {outcome:8} {number}")
    for group, name, outcome in found:
        if outcome != "equal":
            print(f"{group}\t{name}\t{outcome}", file=sys.stderr)
    equal = sum(number for (_, outcome), number in counts.items() if outcome == "equal")
    print(f"agrees with the peers in {equal} of {len(found)}")
    return int(any(outcome.startswith("wrong") for _, _, outcome in found))


if __name__ == "__main__":
    sys.exit(main())
