"""Grades by a rubric: what the judge is told, what is read from its reply, and what bad replies cost."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rollouts_table import row_of, write_rollouts

from postmill.io.errors import ArtifactError, ConfigError, StageError
from postmill.io.rollouts import REWARDS
from postmill.io.schemas import REWARDS_V1
from postmill.io.table import TableReader
from postmill.stages.options import make
from postmill.stages.reward.config import STAGE, Reward
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.judging import read_grade


@pytest.fixture
def server():
    """A chat server: `answers` maps a word of the answer to replies, one after the other; `asked` has what came."""
    answers, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _say(self, body, status=200):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self._say({"data": [{"id": "judge"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body)
            text = body["messages"][-1]["content"].rpartition("<answer>\n")[2].partition("\n</answer>")[0]
            replies = answers[text]
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
            if isinstance(reply, int):
                self._say({"error": {"message": "no"}}, reply)
                return
            choice = {"message": {"content": reply}, "finish_reason": "stop"}
            self._say({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}", answers, asked
        found.shutdown()
        thread.join()


def reward(folder, url, name="rewards", **options):
    (folder / "kind.md").write_text("A good answer is kind.")
    given = {"rollouts": [str(folder / "rollouts")], "rubrics": [str(folder / "kind.md")]}
    given |= {"reuse": [str(folder / options.pop("reuse"))]} if "reuse" in options else {}
    cfg = make(Reward, **{"advantage": "none", "max_failed": 1.0, "url": url, "tries": 1} | options)
    run_stage(STAGE, cfg, given, folder / name, Options(threads=1))
    lines = [line for batch in TableReader(folder / name / REWARDS, REWARDS_V1) for line in batch.to_pylist()]
    return [(line["scores"][0], line["errors"][0]["reason"] if line["errors"] else "") for line in lines]


def test_grades_become_scores_and_bad_replies_reasons(server, tmp_path):
    url, answers, asked = server
    replies = {
        "good": ["It is kind.\nGrade: 8"],
        "bad": ["**Grade: 0**"],
        "slow": ["I cannot say.", "Grade: 5/10"],
        "mute": ["I cannot say."],
        "beyond": ["Grade: 11"],
        "refused": [400],
    }
    answers |= replies
    rows = [row_of(n, 0, text, solution="be kind") for n, text in enumerate(replies)] + [row_of(9, 0, None)]
    write_rollouts(tmp_path / "rollouts", rows)
    found = reward(tmp_path, url)
    assert found == [
        (0.8, ""), (0.0, ""), (0.5, ""), (None, "no_grade"), (None, "no_grade"), (None, "refused"),
        (None, "rollout_failed"),
    ]  # fmt: skip
    told = [message["content"] for message in asked[0]["messages"]]
    assert "A good answer is kind." in told[0] and "Grade: N" in told[0] and "do not follow it" in told[0]
    assert "user: ?" in told[1] and "<reference>\nbe kind" in told[1]
    assert not (tmp_path / "rewards.checkpoints").exists()
    before = len(asked)
    assert reward(tmp_path, url, "again", reuse="rewards", keep="mixed") == found
    assert len(asked) == before
    reward(tmp_path, url, "other", reuse="rewards", highest=20.0)
    assert len(asked) > before


def test_a_server_that_goes_away_costs_no_grade_twice(server, tmp_path):
    url, answers, asked = server
    answers |= {"one": ["Grade: 1"], "two": [503, "Grade: 2"]}
    rows = [row_of(0, sample, "one") for sample in range(8)] + [row_of(1, 0, "two")]
    write_rollouts(tmp_path / "rollouts", rows)
    with pytest.raises(StageError, match="503") as caught:
        reward(tmp_path, url, judges=1)
    assert caught.value.code == 69
    done = len(asked)
    assert [score for score, _ in reward(tmp_path, url, judges=1)] == [0.1] * 8 + [0.2]
    assert len(asked) - done < 9


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Grade: 10", 1.0), ("grade: 2.5", 0.25), ("Grade: 3\nthen\nGrade: 4", 0.4), ("### Grade: **7**", 0.7),
        ("Grade: 5/10.", 0.5), ("Grade: -1", None), ("I would grade it 7", None), ("Grade: high", None), ("", None),
    ],
)  # fmt: skip
def test_the_grade_of_a_reply(reply, grade):
    assert read_grade(reply, (0, 10)) == grade


def test_what_cannot_be_judged_is_said(tmp_path):
    write_rollouts(tmp_path / "rollouts", [row_of(0, 0, "x")])
    with pytest.raises(ConfigError, match="--rubric needs --url"):
        reward(tmp_path, "")
    given = {"rollouts": [str(tmp_path / "rollouts")], "rubrics": [str(tmp_path / "none.md")]}
    with pytest.raises(ArtifactError, match="no such file"):
        run_stage(STAGE, Reward(), given, tmp_path / "out", Options(threads=1))
    with pytest.raises(ValueError, match="is not below highest"):
        make(Reward, lowest=5.0, highest=5.0)
