"""The journal of replies: what is whole is taken over, and what follows the first damage is asked for again."""

import pytest

from postmill.stages.shared.engine.protocol import Reply
from postmill.stages.shared.journal import Journal


@pytest.mark.parametrize("damage", [b"[{", b'[{"\xff": 1}]\n', b"[" * 5000 + b"\n", b"[]"])
def test_whole_lines_before_damage_are_kept(tmp_path, damage):
    path = tmp_path / "work" / "replies.jsonl"
    journal = Journal(path, "key")
    replies = [Reply(key=f"{number}", ids=[number]) for number in range(3)]
    for reply in replies:
        journal.add([reply])
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    again = Journal(path, "key")
    assert again.replies == {reply.key: reply for reply in replies}
    again.close()
    assert path.read_bytes() == whole


def test_replies_of_other_work_are_thrown_away(tmp_path):
    path = tmp_path / "replies.jsonl"
    journal = Journal(path, "one")
    journal.add([Reply(key="a", ids=[1])])
    journal.close()
    other = Journal(path, "another")
    assert other.replies == {}
    other.close()
