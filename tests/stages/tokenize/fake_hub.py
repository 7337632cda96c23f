"""The few routes of the two hubs that their clients use for data sets, on loopback, from a folder."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    root: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.requests.append(f"{self.command} {self.path}")
        if path.startswith("/api/datasets/"):
            self._hf_info(path.removeprefix("/api/datasets/"))
        elif path.startswith("/datasets/") and "/resolve/" in path:
            name, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
            self._file(self.root / name / rest.partition("/")[2])
        elif path.startswith("/api/v1/datasets/") and path.endswith("/repo/tree"):
            self._ms_tree(path.removeprefix("/api/v1/datasets/").removesuffix("/repo/tree"), parse_qs(url.query))
        elif path.startswith("/api/v1/datasets/") and path.endswith("/repo"):
            name = path.removeprefix("/api/v1/datasets/").removesuffix("/repo")
            self._file(self.root / name / parse_qs(url.query)["FilePath"][0])
        else:
            self._missing()

    def _files(self, name: str) -> list[Path]:
        return sorted(path for path in (self.root / name).rglob("*") if path.is_file())

    def _hf_info(self, rest: str) -> None:
        name, _, revision = rest.partition("/revision/")
        files = self._files(name)
        if not files or revision not in ("", "main", COMMIT):
            self._missing()
            return
        siblings = [{"rfilename": path.relative_to(self.root / name).as_posix()} for path in files]
        self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0})

    def _ms_tree(self, name: str, query: dict[str, list[str]]) -> None:
        files = self._files(name)
        if not files:
            self._missing()
            return
        page = int(query.get("PageNumber", ["1"])[0])
        listed = [
            {
                "Path": path.relative_to(self.root / name).as_posix(),
                "Name": path.name,
                "Size": path.stat().st_size,
                "Type": "blob",
                "Sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]
        data = {"Files": listed if page == 1 else [], "TotalCount": len(listed)}
        self._json({"Code": 200, "Success": True, "Message": "", "Data": data})

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._missing()
            return
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _missing(self) -> None:
        body = b'{"error":"Repository not found","Code":404,"Message":"not found","Success":false}'
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def fake_hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """URL of a hub whose repositories are the folders `root/owner/name`, and the requests it got."""
    requests: list[str] = []
    handler = type("Hub", (_Hub,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
