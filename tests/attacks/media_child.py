"""Gives every bad file and reference of `bad_media.py` to whoever reads media, and says what came of it as JSON.

    python -P tests/attacks/media_child.py FOLDER

A process of its own, so that its peak of memory is that of this work alone.
"""

import base64
import contextlib
import io
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bad_media
import media_models

from postmill.cli.main import _guarded
from postmill.io.errors import ArtifactError, ConfigError
from postmill.io.ledger import read_ledger
from postmill.stages.eval.config import Eval
from postmill.stages.eval.questions import read_questions
from postmill.stages.serve.errors import ApiError
from postmill.stages.serve.media import decoded, read_picture, read_sound
from postmill.stages.shared.media.decode import decode
from postmill.stages.shared.media.sound import decode_sound

Said = dict[str, tuple[int, str]]
"""By the name of a case: an exit code, or a status of HTTP, and what was said."""


@contextlib.contextmanager
def canary() -> Iterator[tuple[int, list[str]]]:
    """A server here that tells who asked it."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, address = listener.accept()
                    asked.append(str(address))
                    connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], asked
        listener.shutdown(socket.SHUT_RDWR)


def watch_connections(asked: list[str]) -> None:
    """Python's own attempts to connect, or to look a name up, wherever they go."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
            asked.append(f"{event} {arguments[1:]}")

    sys.addaudithook(hook)


def by_command(argv: list[Any]) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
        code = _guarded(str(argv[0]), [str(word) for word in argv[1:]])
    return code, error.getvalue()


def tokenized(folder: Path, model: Path, kind: str, references: dict[str, Any]) -> tuple[Said, dict[str, str]]:
    """What `tokenize` says of each row alone, and the reasons in the ledger of one run over all of them."""
    rows = {
        name: {"query": f"<{kind}>what is it?", "response": "a cat", f"{kind}s": [reference]}
        for name, reference in references.items()
    }
    said = {}
    for name, row in rows.items():
        data = media_models.write_lines(folder / "one.jsonl", [row])
        said[name] = by_command(["tokenize", data, "-m", model, "-o", folder / "one", "-q", "--force"])
    good = {"query": "no media", "response": "none"}
    data, out = media_models.write_lines(folder / "all.jsonl", [*rows.values(), good]), folder / f"{kind}-all"
    code, text = by_command(["tokenize", data, "-m", model, "-o", out, "--on-bad-row", "skip", "-q", "--force"])
    assert code == 0, text
    by_line = {line["line"]: line["reason"] for line in read_ledger(out).to_pylist()}
    return said, {name: by_line.get(number, "kept") for number, name in enumerate(rows, 1)}


def tried(work: Callable[[], Any]) -> tuple[int, str]:
    """The code with which a call is refused; 0 if it is not."""
    try:
        work()
    except (ArtifactError, ConfigError) as error:
        return error.code, f"{error}\n"
    except ApiError as error:
        return error.status, f"{error}\n"
    except Exception as error:
        return -1, f"{type(error).__name__}: {error}\n"
    return 0, ""


def served(part: dict[str, Any], read: Callable[[dict[str, Any], str], dict[str, Any]]) -> tuple[int, str]:
    """What a server says to a part of a request."""

    def work() -> None:
        content = [read(part, "messages.0.content.0")]
        decoded([{"role": "user", "content": content}], decode_sound)

    return tried(work)


def sent(reference: Any) -> tuple[int, str]:
    """What a server says to a picture, wherever the request says it is."""
    return served({"image_url": reference if isinstance(reference, dict) else {"url": reference}}, read_picture)


def sent_bytes(kind: str, content: bytes) -> tuple[int, str]:
    """What a server says to the bytes of a file."""
    text = base64.b64encode(content).decode()
    if kind == "audio":
        return served({"input_audio": {"data": text}}, read_sound)
    return sent(f"data:image/png;base64,{text}")


def asked_about(folder: Path, reference: Any) -> tuple[int, str]:
    """What `eval` says to a question about a picture."""
    row = {"question": "<image>?", "images": [reference]}
    path = media_models.write_lines(folder / "ask.jsonl", [row])
    return tried(lambda: read_questions(Eval(), path))


def main(folder: Path) -> dict[str, Any]:
    """All faces, all cases. folder: `data` with the files that `files.json` names by kind and case, and the models."""
    data = folder / "data"
    names = json.loads((folder / "files.json").read_bytes())
    found: dict[str, Any] = {}
    with canary() as (port, asked):
        watch_connections(asked)
        for kind, files in names.items():
            found[kind], found[f"{kind} reasons"] = tokenized(data, folder / kind, kind, files)
            contents = {name: (data / file).read_bytes() for name, file in files.items()}
            read = decode if kind == "image" else decode_sound
            found[f"{kind} decoded"] = {name: tried(lambda: read(contents[name], name)) for name in files}  # noqa: B023
            found[f"{kind} sent"] = {name: sent_bytes(kind, contents[name]) for name in files}
        outside = folder / "elsewhere" / "a.png"
        bad_media.make_traps(data, outside)
        cases = bad_media.references(outside, port)
        references = {name: reference for name, (reference, _) in cases.items()}
        found["reference"], found["reference reasons"] = tokenized(data, folder / "image", "image", references)
        found["reference sent"] = {name: sent(reference) for name, reference in references.items()}
        texts = {name: reference for name, reference in references.items() if isinstance(reference, str)}
        found["reference asked"] = {name: asked_about(data, text) for name, text in texts.items()}
        found["connections"] = asked
    # not ru_maxrss, which a process has from the one that started it
    status = Path("/proc/self/status").read_text()
    found["peak_bytes"] = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
