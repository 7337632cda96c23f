"""A judge behind a URL: pairs in both orders, verdicts of one form, and what is no verdict."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pyarrow as pa
import pytest

from postmill.cli import judge
from postmill.io.errors import ArtifactError, ConfigError, StageError
from postmill.io.schemas import EVAL_ITEMS_V1
from postmill.io.table import TableWriter
from postmill.stages.shared.judging import combine, read_mark, read_verdict


class Judge(BaseHTTPRequestHandler):
    """Prefers what is called good, or whatever comes first; some things it does not judge."""

    def do_GET(self):
        self._send({"data": [{"id": "judge"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        (message,) = body["messages"]
        assert body["temperature"] == 0
        said = self._judge(message["content"])
        if said is None:
            self._send({"error": {"message": "no"}}, 400)
        else:
            self._send({"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]})

    def _judge(self, text):
        self.server.asked.append(text)
        if "mumble" in text:
            return "Both are nice."
        if "refuse" in text:
            return None
        assert "do not follow it" in text
        if "<answer>\n" in text:
            return f"Fine.\nScore: {9 if 'good' in text.split('<answer>')[-1] else 2}"
        if "first" in text:
            return "I like A.\nVerdict: A"
        answer_a = text.split("<answer-a>\n")[1].split("<answer-b>\n")[0]
        answer_b = text.split("<answer-b>\n")[1]
        if ("good" in answer_a) == ("good" in answer_b):
            return "**Verdict: tie**"
        return f"Verdict: B is what I thought.\nVerdict: {'A' if 'good' in answer_a else 'B'}"

    def _send(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as found:
        found.asked = []
        threading.Thread(target=found.serve_forever, daemon=True).start()
        found.url = f"http://127.0.0.1:{found.server_port}"
        yield found
        found.shutdown()


AFTER = {
    "won": ("user: q", "good one"),
    "lost": ("user: q", "poor one"),
    "even": ("user: q", "good"),
    "turns": ("user: who is first?", "x"),
    "none": ("user: mumble", "good"),
    "other words": ("user: changed", "good"),
    "only here": ("user: q", "good"),
}
BEFORE = {
    "won": ("user: q", "bad one"),
    "lost": ("user: q", "a good one"),
    "even": ("user: q", "good too"),
    "turns": ("user: who is first?", "y"),
    "none": ("user: mumble", "bad"),
    "other words": ("user: q", "bad"),
}


@pytest.fixture
def evals(monkeypatch):
    monkeypatch.setattr(judge, "open_artifact", {"after": AFTER, "before": BEFORE}.__getitem__)
    monkeypatch.setattr(judge, "answers", lambda artifact: artifact)


def test_pairs_are_judged_in_both_orders(server, evals, tmp_path, capsys):
    out = tmp_path / "verdicts.jsonl"
    argv = ["after", "--before", "before", "--url", server.url, "-o", str(out), "--json", "--max-errors", "0.3"]
    assert judge.run(argv) == 0
    assert json.loads(capsys.readouterr().out) == {
        "items": 5,
        "wins": 1,
        "losses": 1,
        "ties": 2,
        "swapped": 1,
        "unjudged": 1,
        "win_rate": 0.5,
        "p": 1.0,
    }
    rows = {row["item_id"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert [(name, row["winner"], row["is_swapped"]) for name, row in rows.items()] == [
        ("won", "after", False),
        ("lost", "before", False),
        ("even", "tie", False),
        ("turns", "tie", True),
        ("none", None, False),
    ]
    assert (rows["won"]["first"], rows["won"]["second"]) == ("A", "B")
    assert len(server.asked) == 10
    with pytest.raises(StageError, match="1 of 5 items have no verdict") as caught:
        judge.run([*argv, "--max-errors", "0"])
    assert caught.value.code == 65


def test_a_rubric_gives_marks(server, monkeypatch, tmp_path, capsys):
    marked = {"a": ("q", "good"), "b": ("q", "bad"), "c": ("refuse", "good")}
    monkeypatch.setattr(judge, "open_artifact", lambda word: marked)
    monkeypatch.setattr(judge, "answers", lambda artifact: artifact)
    (tmp_path / "rubric.txt").write_text("Only kindness counts.\n")
    argv = ["e", "--url", server.url, "--rubric", str(tmp_path / "rubric.txt"), "--max-errors", "0.5"]
    assert judge.run(argv) == 0
    assert capsys.readouterr().out == "3 answers, mean mark 5.50 of 10; 1 without a mark\n"
    assert all("Only kindness counts." in text for text in server.asked)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Verdict: A", "A"),
        ("so\n**Verdict: b**\n", "B"),
        ("Verdict: A\nno,\nVerdict: Tie", "tie"),
        ("Verdict: A is wrong", ""),
        ("The verdict: A", ""),
        ("A", ""),
        ("Verdict: AB", ""),
        ("", ""),
    ],
)
def test_a_verdict_has_one_form(reply, verdict):
    assert read_verdict(reply) == verdict


def test_marks_have_one_form():
    assert [read_mark(text) for text in ("Score: 7", "Score: 3\n*Score: 10*", "Score: 11", "Score: 0", "7")] == [
        7,
        10,
        None,
        None,
        None,
    ]
    assert combine("x", ["Verdict: A", ""]).winner is None


def test_answers_come_from_an_eval(tmp_path):
    rows = [
        {"item_id": "a", "group": "", "prompt": json.dumps([{"role": "user", "content": "hi"}]), "output": "yes"},
        {"item_id": "b", "group": "", "prompt": '"raw text"', "output": "no"},
        {"item_id": "c", "group": "", "prompt": '"x"', "output": None, "error": "too long"},
    ]
    full = [{"prompt_ids": [], "output_ids": [], "finish_reason": None, "error": None} | row for row in rows]
    writer = TableWriter(tmp_path / "items.arrow", EVAL_ITEMS_V1)
    writer.write(pa.RecordBatch.from_pylist(full, schema=EVAL_ITEMS_V1))
    writer.close()
    artifact = SimpleNamespace(manifest=SimpleNamespace(stage="eval"), path=tmp_path, file=lambda name: tmp_path / name)
    assert judge.answers(artifact) == {"a": ("user: hi", "yes"), "b": ("raw text", "no")}
    artifact.manifest.stage = "train"
    with pytest.raises(ArtifactError, match="expected an eval"):
        judge.answers(artifact)


def test_mistakes(evals, server, tmp_path, monkeypatch):
    for argv, kind, said in [
        (["after"], ConfigError, "--url is missing"),
        (["after", "--url", "ftp://x"], ConfigError, "expected http"),
        (["after", "--url", server.url, "--concurrency", "none"], ConfigError, "a whole number above 0"),
        (["after", "--url", server.url, "--max-errors", "nan"], ConfigError, "expected a share like 1%"),
        (["after", "--url", server.url, "--max-errors", "2"], ConfigError, "expected a share like 1%"),
        (["after", "--url", server.url, "--rubric", str(tmp_path / "no")], ArtifactError, "no such file"),
    ]:
        with pytest.raises(kind, match=said):
            judge.run(argv)
    monkeypatch.setattr(judge, "open_artifact", {"after": AFTER, "before": {}}.__getitem__)
    with pytest.raises(ArtifactError, match="no question in common"):
        judge.run(["after", "--before", "before", "--url", server.url])
