"""The page's server: what it shows is what the commands say, it runs nothing it may not, and strangers get nothing."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny_tokenizer

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from postmill.cli.page import page
from postmill.cli.page.app import App
from postmill.cli.page.guard import MOST_BODY_BYTES, Guard
from postmill.cli.page.jobs import Jobs
from postmill.cli.page.places import Folder
from postmill.io.manifest import load_artifact
from postmill.stages.shared.http import bind, make_server

TOKEN = "a" * 43
RECIPE = "[tokenize]\nmax_length = 64\n\n[pack]\nrow_tokens = 64\n"
"""Data stages alone: they need no torch, and end in a second."""


class Page:
    """A page's server, and questions to it."""

    def __init__(self, port: int, app: App, root: Path) -> None:
        self.port, self.app, self.root = port, app, root

    def send(self, path: str, body: bytes = b"{}", method: str = "POST", **headers: str) -> tuple[int, str]:
        """One request as the page itself sends it, but for the headers given (empty: not sent)."""
        sent = {
            "host": f"127.0.0.1:{self.port}", "authorization": f"Bearer {TOKEN}", "content-type": "application/json",
            "content-length": str(len(body)),
        } | {name.replace("_", "-"): value for name, value in headers.items()}  # fmt: skip
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(link):
            link.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value:
                    link.putheader(name, value)
            link.endheaders()
            with contextlib.suppress(OSError):  # a body that is refused unread may be cut off
                link.send(body if method == "POST" else b"")
            reply = link.getresponse()
            return reply.status, reply.read().decode()

    def ask(self, what: str, body: Any = None) -> Any:
        status, text = self.send(f"/api/{what}", json.dumps(body or {}).encode())
        assert status == 200, text
        return json.loads(text)

    def refused(self, what: str, body: Any) -> str:
        status, text = self.send(f"/api/{what}", json.dumps(body).encode())
        assert 400 <= status < 500, text
        error: str = json.loads(text)["error"]
        return error


def until(condition: Any) -> Any:
    """What a condition gives once it is true."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("never true")


@contextlib.contextmanager
def serving(root: Path, *, allow_run: bool) -> Iterator[Page]:
    listener = bind("127.0.0.1", 0, "ui")
    port = listener.getsockname()[1]
    app = App(Folder(root), Guard(port, TOKEN), allow_run=allow_run, env=dict(os.environ))
    server = make_server(app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Page(port, app, root)
    finally:
        server.should_exit = True
        thread.join(60)
        app.talks.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    outer = tmp_path_factory.mktemp("ui")
    root = outer / "work"
    tiny_tokenizer.write_tokenizer(root / "base")
    tiny_tokenizer.write_tokenizer(outer / "other")
    rows = [{"query": f"q{i}", "response": "in there"} for i in range(4)]
    for folder in (root, outer):
        (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "data.toml").write_text(RECIPE)
    (root / "link.jsonl").symlink_to(outer / "chats.jsonl")
    before = Path.cwd()
    os.chdir(root)  # as `postmill ui` does
    try:
        with serving(root, allow_run=True) as found:
            yield found
    finally:
        os.chdir(before)


ASKED = {"recipe": "data.toml", "data": "chats.jsonl", "model": "base", "output": "out"}


def test_what_is_filled_in_is_a_command_and_a_recipe(world: Page) -> None:
    settings = {"tokenize.loss_scale": "last_round", "pack.row_tokens": "80"}
    plan = world.ask("plan", ASKED | {"settings": settings})
    assert plan["argv"] == [
        *("run", "data.toml", "chats.jsonl", "-m", "base", "-o", "out"),
        *("--set", "tokenize.loss_scale=last_round", "--set", "pack.row_tokens=80"),
    ]
    assert plan["commands"] == [
        "postmill tokenize chats.jsonl -m base -o out/tokenize --max-length 64 --loss-scale last_round",
        "postmill pack out/tokenize -o out/pack --row-tokens 80",
    ]
    # the recipe that is shown says the same as the command
    (world.root / "shown.toml").write_text(plan["recipe"])
    shown = world.ask("plan", {"recipe": "shown.toml", "output": "out"})
    assert shown["commands"] == plan["commands"] and shown["faults"] == []


def test_faults_are_those_of_the_command(world: Page) -> None:
    plan = world.ask("plan", ASKED | {"settings": {"pack.row_tokens": "-3", "tokenize.max_lenght": "8"}})
    assert plan["commands"] == []
    assert "int` >= 1" in " ".join(plan["faults"]) and "did you mean max_length?" in " ".join(plan["faults"])
    nothing = world.ask("plan", {"recipe": "data.toml"})
    assert len(nothing["faults"]) == 1 and "no data" in nothing["faults"][0]


def test_fields_are_what_the_stages_declare(world: Page) -> None:
    plan = world.ask("plan", {"recipe": "sft", "settings": {"train.tuner": "full"}})
    train = next(section for section in plan["sections"] if section["name"] == "train")
    fields = {field["path"]: field for field in train["fields"]}
    assert "lora.rank" not in fields and fields["tuner"]["kind"] == "choice" and "lora" in fields["tuner"]["names"]
    assert fields["lr"]["value"] == 2e-4 and fields["lr"]["doc"]
    tokenize = plan["sections"][0]["fields"]
    assert next(field for field in tokenize if field["path"] == "max_length")["value"] == 2048


def test_masks_are_those_of_show_and_follow_the_loss_scale(world: Page) -> None:
    def trained(scale: str) -> int:
        options = {"loss_scale": scale} if scale else {}
        rows = world.ask("masks", {"data": "chats.jsonl", "model": "base", "options": options, "rows": 2})["rows"]
        assert [row["place"] for row in rows] == ["chats.jsonl:1", "chats.jsonl:2"]
        return sum(len(ids) for row in rows for _, ids, weight, _ in row["pieces"] if weight)

    assert trained("all") > trained("") > 0
    line = world.refused("masks", {"data": "chats.jsonl", "model": "base", "options": {"loss_scale": "defualt"}})
    assert "defualt" in line
    assert "no such" in world.refused("masks", {"data": "none.jsonl", "model": "base"})


def ended(world: Page, name: str) -> dict[str, Any]:
    job: dict[str, Any] = until(lambda: (one := world.ask("job", {"name": name}))["state"] != "running" and one)
    return job


def test_a_run_is_the_command_and_is_listed_by_whoever_comes_later(world: Page) -> None:
    name = world.ask("run", ASKED | {"output": "made"})["name"]
    job = ended(world, name)
    assert (job["state"], job["code"]) == ("done", 0), job["log"]
    assert job["command"] == ["postmill", "run", "data.toml", "chats.jsonl", "-m", "base", "-o", "made"]
    assert "pack" in job["log"] and job["out"].strip() == "made/pack"
    artifact = load_artifact(world.root / "made" / "pack")
    listed = {entry["path"]: entry for entry in world.ask("files")["artifacts"]}
    assert listed["made/pack"]["kind"] == "packed" and artifact.digest.startswith(listed["made/pack"]["digest"])
    with serving(world.root, allow_run=False) as later:  # another server sees the same runs
        assert later.ask("job", {"name": name})["state"] == "done"
        assert "--allow-run" in later.refused("resume", {"name": name})
        assert "--allow-run" in later.refused("run", ASKED)


def test_a_run_that_was_stopped_goes_on(world: Page, tmp_path: Path) -> None:
    """The data is a pipe that nobody fills, so the run is surely at work when it is told to stop."""
    os.mkfifo(world.root / "slow.jsonl")
    asked = ASKED | {"data": "slow.jsonl", "output": "slow"}
    name = world.ask("run", asked)["name"]
    until(lambda: "$ postmill tokenize" in world.ask("job", {"name": name})["log"])
    assert "is writing there" in world.refused("run", asked)
    assert "it runs" in world.refused("resume", {"name": name})
    world.ask("stop", {"name": name})
    stopped = ended(world, name)
    assert stopped["state"] in ("stopped", "failed")
    (world.root / "slow.jsonl").unlink()
    (world.root / "slow.jsonl").write_text((world.root / "chats.jsonl").read_text())
    world.ask("resume", {"name": name})
    done = ended(world, name)
    assert done["state"] == "done"
    assert done["seconds"] >= stopped["seconds"] and done["started"] > stopped["started"], "all starts together"


def test_seconds_of_a_run_are_those_of_all_its_starts(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, dict(os.environ))
    name = jobs.start(["recipe", "list"], "made")
    until(lambda: jobs.all()[0]["state"] == "done")
    path = tmp_path / ".postmill" / "jobs" / name / "job.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"seconds_before": 1000.0}))
    assert jobs.all()[0]["seconds"] >= 1000
    jobs.resume(name)
    until(lambda: jobs.all()[0]["state"] == "done")
    assert jobs.all()[0]["seconds"] >= 1000, "a start more does not begin at nothing"


def test_an_artifact_is_seen_once_in_a_page_without_rights(world: Page) -> None:
    if not (world.root / "made").exists():
        ended(world, world.ask("run", ASKED | {"output": "made"})["name"])
    address = world.ask("view", {"name": "made/tokenize"})["address"]
    status, text = world.send(address, method="GET", authorization="")
    assert status == 200 and "<title>tokenize</title>" in text
    assert world.send(address, method="GET", authorization="")[0] == 404


def test_curves_are_those_of_runs_below_the_output(world: Page) -> None:
    folder = world.root / "live" / "train.checkpoints"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n')
    assert world.ask("curves", {"name": "live"}) == {
        "curves": [{"name": "train: loss", "points": [[1.0, 2.5], [2.0, 2.0]]}]
    }


HOSTILE = [
    *((f"/api/{name}", {"authorization": ""}, 401) for name in ("about", "files", "plan", "run", "view", "jobs")),
    ("/api/about", {"authorization": "Bearer"}, 401),
    ("/api/about", {"authorization": "Bearer "}, 401),
    ("/api/about", {"authorization": f"Bearer {TOKEN}a"}, 401),
    ("/api/about", {"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
    ("/api/about", {"authorization": f"bearer {TOKEN}"}, 401),
    ("/api/about", {"authorization": f"Basic {TOKEN}"}, 401),
    ("/api/about", {"authorization": TOKEN}, 401),
    ("/api/about", {"authorization": "Bearer caf\u00e9"}, 401),
    ("/api/nothing", {"authorization": ""}, 401),
    (f"/api/about?token={TOKEN}", {"authorization": ""}, 401),
    *(("/api/about", {"host": host}, 403) for host in ("evil.example", "evil.example:{port}", "localhost")),
    *(("/api/about", {"host": host}, 403) for host in ("127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}")),
    ("/api/about", {"host": "127.0.0.1.evil.example:{port}"}, 403),
    *(("/", {"host": host}, 403) for host in ("evil.example", "169.254.169.254:{port}", "[::ffff:127.0.0.1]:{port}")),
    ("/api/about", {"host": ""}, 400),
    *(("/api/about", {"origin": origin}, 403) for origin in ("null", "http://evil.example", "https://127.0.0.1:{port}")),
    *(("/api/run", {"origin": origin}, 403) for origin in ("http://127.0.0.1:1", "http://localhost:{port}", "file://")),
    *(("/api/run", {"sec_fetch_site": site}, 403) for site in ("cross-site", "same-site", "anything")),
    *(("/api/run", {"content_type": kind}, 415) for kind in ("text/plain", "application/x-www-form-urlencoded", "")),
    ("/api/run", {"content_type": "multipart/form-data; boundary=x"}, 415),
    ("/api/run", {"content_length": str(MOST_BODY_BYTES + 1)}, 413),
    ("/api/run", {"content_length": "99999999999"}, 413),
    *((path, {}, 404) for path in ("/api/", "/api/../api/none", "/none", "/api/eval", "/seen/x", "/.git/config")),
    *((path, {}, 404) for path in ("//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/files/..%2f..", "/page.js")),
]  # fmt: skip
"""Path, headers in place of the page's own, and the status."""
BODIES: list[tuple[str, Any, int]] = [
    *(("plan", ASKED | {"data": data}, 403) for data in ("../chats.jsonl", "/etc/passwd", "link.jsonl", "x/../../a#3")),
    *(("plan", ASKED | {"model": model}, 403) for model in ("../other", "/etc", "base/../../other")),
    *(("plan", ASKED | {"output": output}, 403) for output in ("../made", "/tmp/x", "out/../../x")),
    *(("plan", ASKED | {"recipe": recipe}, 403) for recipe in ("../data.toml", "/etc/x.toml", "x/../../data.toml")),
    *(("run", ASKED | {"settings": {"tokenize.loss_scale": one}}, 403) for one in ("/etc/hosts", "../data.toml")),
    ("run", ASKED | {"settings": {"reward.functions": "../data.toml:judge"}}, 403),
    ("masks", {"data": "../chats.jsonl", "model": "base"}, 403),
    ("masks", {"data": "chats.jsonl", "model": "../other"}, 403),
    ("masks", {"data": "chats.jsonl", "model": "base", "options": {"loss_scale": "/etc/hostname"}}, 403),
    ("masks", {"data": "chats.jsonl", "model": "base", "options": {"chat_template": "base/x"}}, 400),
    *((what, {"name": name}, 403) for what in ("view", "curves") for name in ("..", "/etc", "link.jsonl", "~/../..")),
    *(("job", {"name": name}, 404) for name in ("..", "../../chats", ".", "", "x\0", "a/b")),
    *(("stop", {"name": name}, 404) for name in ("..", "1", "-1")),
    ("talk", {"base": "../other"}, 403),
    ("talk", {"base": "base", "tuned": "/etc"}, 403),
    ("run", {"recipe": "none"}, 400),
    ("run", ASKED | {"settings": {"nonsense": "1"}}, 400),
    ("run", ASKED | {"argv": ["rm", "-rf"]}, 400),
    ("plan", [], 400),
    ("plan", {"recipe": 3}, 400),
    ("view", {"name": "a\0b"}, 400),
]  # fmt: skip
"""Question, body, and the status."""


def test_sixty_hostile_requests_and_more_are_refused(world: Page) -> None:
    assert len(HOSTILE) + len(BODIES) > 90
    before = sorted(path for path in world.root.parent.rglob("*") if ".postmill" not in path.parts)
    for path, headers, status in HOSTILE:
        said = {name: value.format(port=world.port) for name, value in headers.items()}
        got, text = world.send(path, **said)
        assert got == status, (path, headers, text)
        assert TOKEN not in text and "Traceback" not in text
    for what, body, status in BODIES:
        got, text = world.send(f"/api/{what}", json.dumps(body).encode())
        assert got == status, (what, body, text)
        assert "root:" not in text and "Traceback" not in text
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"recipe": "\\ud800"}', b"null"):
        assert world.send("/api/plan", body)[0] == 400, body[:20]
    assert sorted(path for path in world.root.parent.rglob("*") if ".postmill" not in path.parts) == before


def test_every_question_wants_the_token_and_post(world: Page) -> None:
    for name in world.app.routes:
        assert world.send(f"/api/{name}", authorization="")[0] == 401
        assert world.send(f"/api/{name}", method="GET")[0] == 405


def test_the_page_holds_nothing_and_lets_nothing_in(world: Page) -> None:
    status, text = world.send("/", method="GET", authorization="")
    assert status == 200 and str(world.root) not in text and TOKEN not in text
    _, policy = page.build()
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "frame-ancestors 'none'" in policy
    assert not re.search(
        r"innerHTML|insertAdjacent|document\.write|eval\(|XMLHttp|https?://(?!www\.w3\.org)| on[a-z]+=", text
    )


def test_every_word_is_in_both_languages() -> None:
    folder = page.HERE
    table = (folder / "words.js").read_text()
    known = set(re.findall(r"^  (\w+): \[", table, re.M))
    code = "".join((folder / name).read_text() for name in ("page.html", "parts.js", "form.js", "page.js"))
    used = set(re.findall(r'data-word="(\w+)"', code)) | set(re.findall(r'say\("(\w+)"\)', code))
    assert used <= known, used - known
    pairs = re.findall(r'\[\s*"((?:[^"\\]|\\.)*)",\s*"((?:[^"\\]|\\.)*)",?\s*\]', table)
    assert len(pairs) == len(known)
    han = re.compile(r"[\u4e00-\u9fff]")
    assert all(han.search(chinese) and not han.search(english) for english, chinese in pairs)
