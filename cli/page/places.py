"""What requests may name: paths below the one folder that `postmill ui` was given, and models of a hub."""

import re
from pathlib import Path
from typing import Any

from postmill.cli.page.guard import Refused
from postmill.io.hub import PREFIXES
from postmill.io.manifest import MANIFEST, load_artifact
from postmill.stages.shared.model_reference import hub_model

_MOST_ENTRIES = 2000
_DEPTH = 4
_ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_PARTS = re.compile(r"[=:,\"'\[\]{}\n]")


class Folder:
    """The folder, and all questions about what lies below it. Links are followed before a path is judged."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def path(self, text: str) -> Path:
        """Where a path of a request lies. Raises Refused (400, 403)."""
        if not text or "\0" in text:
            raise Refused(400, "an empty path")
        try:
            path = (self.root / text).resolve()
        except (OSError, RuntimeError):
            raise Refused(400, f"{text[:80]}: no such path") from None
        if not path.is_relative_to(self.root):
            raise Refused(403, f"{text[:80]}: outside of the folder that the page was opened for")
        return path

    def model(self, text: str) -> str:
        """A model: below the folder, or a hub's by its name. Raises Refused (400, 403)."""
        if not text.startswith(("/", ".", "~")) and hub_model(text) is not None:
            return text
        return self._inside(text)

    def data(self, text: str) -> str:
        """Data: below the folder, with what tokenize allows behind a path, or of a hub. Raises Refused (400, 403)."""
        if not text.startswith(tuple(PREFIXES)):
            self.path(text.partition("#")[0])
            self.path(re.split(r"[#:]", text)[0])
        return text

    def value(self, text: str) -> str:
        """The value of an option, which may name a file. Raises Refused (403) if that exists outside of the folder."""
        for part in {text, *_PARTS.split(text)}:
            named = Path(part.strip()) if part.strip() and "\0" not in part and len(part) < 4096 else None
            if named is not None and (named.is_absolute() or ".." in named.parts or part.strip()[0] == "~"):
                path = (self.root / named.expanduser()).resolve()
                if not path.is_relative_to(self.root) and path.exists():
                    raise Refused(403, f"{part.strip()[:80]}: outside of the folder that the page was opened for")
        return text

    def _inside(self, text: str) -> str:
        self.path(text)
        return text

    def name(self, path: Path) -> str:
        """A path as people write it in a command that runs in the folder."""
        return str(path.relative_to(self.root)) if path != self.root else "."

    def listing(self) -> dict[str, list[dict[str, Any]]]:
        """Data files, models, recipes and artifacts below the folder, not deeper than a few levels."""
        listed: dict[str, list[dict[str, Any]]] = {"data": [], "models": [], "recipes": [], "artifacts": []}
        waiting, left = [(self.root, 0)], _MOST_ENTRIES
        while waiting and left > 0:
            folder, depth = waiting.pop(0)
            try:
                entries = sorted(folder.iterdir())
            except OSError:
                continue
            left -= len(entries)
            if self._is_whole(folder, listed):
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() and not entry.is_symlink() and depth < _DEPTH:
                    waiting.append((entry, depth + 1))
                elif entry.suffix in _ROWS and entry.is_file():
                    listed["data"].append({"path": self.name(entry), "bytes": entry.stat().st_size})
                elif entry.suffix == ".toml" and entry.is_file():
                    listed["recipes"].append({"path": self.name(entry)})
        return listed

    def _is_whole(self, folder: Path, listed: dict[str, list[dict[str, Any]]]) -> bool:
        """Whether a folder is an artifact or a model, which is then listed; nothing inside of it is."""
        if (folder / MANIFEST).is_file():
            try:
                artifact = load_artifact(folder)
            except ValueError as error:
                listed["artifacts"].append({"path": self.name(folder), "kind": "damaged", "about": str(error)})
                return True
            about = artifact.manifest
            rows = about.counts.kept + about.counts.truncated if about.counts else None
            entry = {
                "path": self.name(folder),
                "kind": about.kind,
                "stage": about.stage,
                "digest": artifact.digest[:19],
            }
            listed["artifacts"].append(entry | {"rows": rows, "made": (folder / MANIFEST).stat().st_mtime})
            if about.kind in ("model", "adapter"):
                listed["models"].append({"path": self.name(folder), "kind": about.kind})
            return True
        if (folder / "config.json").is_file() and folder != self.root:
            listed["models"].append({"path": self.name(folder), "kind": "model"})
            return True
        return False
