"""The crates that are compiled into the native module, with versions and licences, as CycloneDX: `make sbom`.

Reads what `cargo metadata` prints; writes JSON. Crates of ours are left out, and so are those for tests alone.
"""

import json
import sys
from typing import Any


def bill(metadata: dict[str, Any]) -> dict[str, Any]:
    """A bill of materials (CycloneDX 1.6). Raises ValueError naming crates without a licence."""
    ours = set(metadata["workspace_members"])
    needs = {
        node["id"]: [
            needed["pkg"] for needed in node["deps"] if any(kind["kind"] is None for kind in needed["dep_kinds"])
        ]
        for node in metadata["resolve"]["nodes"]
    }
    left, seen = list(ours), set(ours)
    while left:
        found = [needed for needed in needs[left.pop()] if needed not in seen]
        seen.update(found)
        left += found
    crates = sorted(
        (package for package in metadata["packages"] if package["id"] in seen - ours),
        key=lambda package: (package["name"], package["version"]),
    )
    without = [crate["name"] for crate in crates if not (crate["license"] or crate["license_file"])]
    if without:
        raise ValueError(f"no licence: {', '.join(without)}")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [
            {
                "type": "library",
                "name": crate["name"],
                "version": crate["version"],
                "purl": f"pkg:cargo/{crate['name']}@{crate['version']}",
                "licenses": [{"expression": _expression(crate["license"])}]
                if crate["license"]
                else [{"license": {"name": crate["license_file"]}}],
            }
            for crate in crates
        ],
    }


def _expression(text: str) -> str:
    """A licence as SPDX writes it; old crates divide by a stroke."""
    return " ".join(text.replace("/", " OR ").split())


if __name__ == "__main__":
    json.dump(bill(json.load(sys.stdin)), sys.stdout, indent=2)
    sys.stdout.write("\n")
