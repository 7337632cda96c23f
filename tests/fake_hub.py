"""A hub on loopback: the routes of Hugging Face and ModelScope that their own clients use, served from a folder.

    with fake_hub(root) as hub:  # root/owner/name/... are repositories, of models and of data sets alike
        subprocess.run(..., env=os.environ | hub.environment(tmp_path))

What can go wrong on the way is asked for by setting `faults`, `gated`, `names` or `commit`.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin")
"""Endings of files that lie elsewhere: asked for them, the hub redirects, as for everything in LFS."""


class Hub:
    """What the hub serves, what it was asked, and how it fails."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = ""
        self.commit = COMMIT
        self.revisions = {"main", "v1", "master"}
        self.requests: list[str] = []
        self.faults: dict[str, list[str]] = {}
        """File name -> faults, one a download, then none: `cut` ends the connection halfway, `short` sends less and
        says so, `500` is an error of the server, `flip` changes a byte."""
        self.gated: set[str] = set()
        """Repositories that ask for a login."""
        self.readonly = False
        """Whether nobody may write."""
        self.made: list[dict[str, object]] = []
        """Repositories that were asked for."""
        self.sent: dict[str, bytes] = {}
        """Large files that were sent, by their SHA-256."""
        self.extra_names: list[str] = []
        """Names that are listed without a file."""

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables that send both clients here, with caches under `home` and no login."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "MODELSCOPE_ENDPOINT": self.url,
            "MODELSCOPE_CACHE": str(home / "ms"),
            "MODELSCOPE_HOME": str(home / "ms-home"),
            "HOME": str(home),
        }

    def files(self, name: str) -> dict[str, Path]:
        """Files of a repository by their names."""
        folder = self.root / name
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in found}

    def names(self, name: str) -> list[str]:
        return [*self.files(name), *self.extra_names]

    def asked(self, method: str, what: str) -> list[str]:
        """The requests of a method whose path holds `what`."""
        return [request for request in self.requests if request.startswith(method) and what in request]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        """Writing, as the client of Hugging Face does it: make a repository, ask how files go, send them, commit."""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.readonly:
            self._fail(403, "")
        elif path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}"
            (self.hub.root / name).mkdir(parents=True, exist_ok=True)
            self.hub.made.append(said)
            self._json({"url": f"{self.hub.url}/{name}", "name": name})
        elif path == "/api/v1/models":
            said = json.loads(body)
            (self.hub.root / said["Path"] / said["Name"]).mkdir(parents=True, exist_ok=True)
            self.hub.made.append(said)
            self._json({"Code": 200, "Success": True, "Data": {"Path": said["Path"], "Name": said["Name"]}})
        elif path.startswith("/api/v1/repos/") and "/commit/" in path:
            self._commit_ms(path.removeprefix("/api/v1/repos/models/").partition("/commit/")[0], json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self._json({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/put/{item['oid']}"}}
            self._json({"transfer": "basic", "objects": objects})
        else:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)

    def do_PUT(self) -> None:
        oid = self.path.removeprefix("/put/")
        self.hub.sent[oid] = self.rfile.read(int(self.headers["Content-Length"]))
        self._json({})

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            target = self.hub.root / name / entry["value"].get("path", "")
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry["key"] == "file":
                target.write_bytes(base64.b64decode(entry["value"]["content"]))
            elif entry["key"] == "lfsFile":
                target.write_bytes(self.hub.sent[entry["value"]["oid"]])
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def _commit_ms(self, name: str, said: dict[str, list[dict[str, str]]]) -> None:
        for action in said["actions"]:
            target = self.hub.root / name / action["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            is_large = action["type"] == "lfs"
            target.write_bytes(
                self.hub.sent[action["sha256"]] if is_large else base64.b64decode(action["content"], validate=True)
            )
        self._json({"Code": 200, "Success": True, "Data": {"CommitId": COMMIT}})

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        for kind in ("models", "datasets"):
            if path.startswith(f"/api/v1/{kind}/"):
                self._modelscope(path.removeprefix(f"/api/v1/{kind}/"), query)
                return
            if path.startswith(f"/api/{kind}/"):
                self._hf_api(path.removeprefix(f"/api/{kind}/"))
                return
        if "/resolve/" in path:
            name, _, rest = path.removeprefix("/").removeprefix("datasets/").partition("/resolve/")
            self._hf_file(name, rest.partition("/")[2])
        elif path.startswith("/cdn/"):
            self._body(self.hub.root / path.removeprefix("/cdn/"))
        else:
            self._fail(404, "EntryNotFound")

    def _hf_api(self, rest: str) -> None:
        for route in ("/revision/", "/tree/"):
            name, found, revision = rest.partition(route)
            if found:
                break
        else:
            name, route, revision = rest, "/revision/", "main"
        if name in self.hub.gated:
            self._fail(401, "GatedRepo")
        elif not self.hub.files(name):
            self._fail(404, "RepoNotFound")
        elif revision not in self.hub.revisions | {self.hub.commit}:
            self._fail(404, "RevisionNotFound")
        elif route == "/tree/":
            self._json([self._tree_entry(path, file) for path, file in self.hub.files(name).items()])
        else:
            siblings = [{"rfilename": path} for path in self.hub.names(name)]
            self._json({"id": name, "sha": self.hub.commit, "siblings": siblings, "private": False, "tags": []})

    def _tree_entry(self, path: str, file: Path) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": path, "size": file.stat().st_size, "oid": "0" * 40}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": _sha256(file), "size": file.stat().st_size, "pointerSize": 130}
        return entry

    def _hf_file(self, name: str, file: str) -> None:
        path = self.hub.root / name / file
        if name in self.hub.gated:
            self._fail(401, "GatedRepo")
        elif not path.is_file():
            self._fail(404, "EntryNotFound")
        elif file.endswith(LARGE):
            self.send_response(302)
            self.send_header("Location", f"{self.hub.url}/cdn/{quote(name)}/{quote(file)}")
            self.send_header("X-Repo-Commit", self.hub.commit)
            self.send_header("X-Linked-Etag", f'"{_sha256(path)}"')
            self.send_header("X-Linked-Size", str(path.stat().st_size))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._body(path)

    def _body(self, path: Path) -> None:
        """The file, or the part that Range asks for, or what its fault makes of it."""
        if not path.is_file():
            self._fail(404, "EntryNotFound")
            return
        body = path.read_bytes()
        faults = self.hub.faults.get(path.name, []) if self.command == "GET" else []
        fault = faults.pop(0) if faults else ""
        if fault == "500":
            self._fail(500, "")
            return
        if fault == "short":
            body = body[:-9]
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted.startswith("bytes=") else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.end_headers()
        if self.command == "GET":
            end = start + (len(body) - start) // 2 if fault == "cut" else len(body)
            self.wfile.write(body[start:end])
            self.wfile.flush()
            self.close_connection = fault == "cut"

    def _modelscope(self, rest: str, query: dict[str, list[str]]) -> None:
        name, _, route = rest.partition("/repo")
        files = self.hub.files(name)
        revision = query.get("Revision", ["master"])[0]
        if name in self.hub.gated:
            self._fail(401, "")
        elif not files or revision not in self.hub.revisions:
            self._fail(404, "")
        elif not route and "FilePath" not in query:
            self._json(
                {"Code": 200, "Success": True, "Data": {"Path": name.partition("/")[0], "Name": Path(name).name}}
            )
        elif route in ("/tree", "/files"):
            first = query.get("PageNumber", ["1"])[0] == "1"
            listed = [
                {"Path": path, "Name": file.name, "Size": file.stat().st_size, "Type": "blob", "Sha256": _sha256(file)}
                for path, file in files.items()
            ]
            listed += [{"Path": path, "Name": path, "Size": 1, "Type": "blob"} for path in self.hub.extra_names]
            data = {"Files": listed if first else [], "TotalCount": len(listed)}
            self._json({"Code": 200, "Success": True, "Message": "", "Data": data})
        else:
            self._body(self.hub.root / name / query["FilePath"][0])

    def _fail(self, status: int, code: str) -> None:
        message = {
            401: "access to it is restricted",
            403: "no right to write",
            404: "not found",
            500: "internal error",
        }[status]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self._finish(json.dumps({"error": message, "Code": status, "Message": message, "Success": False}).encode())

    def _json(self, value: object) -> None:
        self.send_response(200)
        self._finish(json.dumps(value).encode())

    def _finish(self, body: bytes) -> None:
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def fake_hub(root: Path) -> Iterator[Hub]:
    """A hub whose repositories are the folders `root/owner/name`."""
    hub = Hub(root)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
