"""Items of a benchmark that training data has, whole or in part, are found; others are not."""

import csv
import json
import subprocess
import sys

import pytest

from postmill.stages.eval.contamination import Finder, words

POEM = (
    "the grey miller walked down to the slow river before dawn and counted eleven white geese asleep among the reeds"
    " while his daughter sang an old song about bread"
)
ITEMS = [
    {"question": POEM, "answer": "42"},
    {"question": "How many legs have seven spiders and three of their oldest cousins got in all, not counting jars?"},
    {"question": "Too short."},
    {"question": "Name nine very old towns that lie by water"},
]


def overlap(*argv):
    command = [sys.executable, "-m", "postmill.cli.main", "overlap", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ITEMS))
    chats = [
        {"messages": [{"role": "user", "content": "Nothing of it."}]},
        {"messages": [{"role": "user", "content": f"He wrote: {POEM.upper().replace(' AND ', ', and ')}!"}]},
        {"text": "Then: Name nine very old towns that lie by water? Yes."},
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    half = " ".join(POEM.split()[:14])
    with (folder / "half.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], ["unrelated"], [f"{half} stop"]])
    (folder / "clean.jsonl").write_text(json.dumps({"text": "Nothing that anybody asks. " * 50}) + "\n")
    return folder


def test_rows_that_were_trained_on_are_named(files):
    done = overlap(files / "items.jsonl", files / "chats.jsonl", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (found["items"], found["judged"], found["with_a_run"], found["seen"]) == (4, 3, 2, 2)
    whole, other, short, named = found["overlaps"]
    assert (whole["share"], whole["longest"], whole["place"]) == (1.0, 29, f"{files / 'chats.jsonl'}:2")
    assert (other["share"], other["place"], short["share"]) == (0.0, "", None)
    assert named["place"] == f"{files / 'chats.jsonl'}:3"
    assert overlap(files / "items.jsonl", files / "chats.jsonl", "--fail-over", "0.5").returncode == 1
    clean = overlap(files / "items.jsonl", files / "clean.jsonl", "--fail-over", "0")
    assert clean.returncode == 0
    assert clean.stdout.startswith("4 items, 3 long enough to tell: 0 share a run of 13 words")


def test_a_part_of_a_row_is_a_share(files):
    (found, *_) = json.loads(overlap(files / "items.jsonl", files / "half.csv", "--json").stdout)["overlaps"]
    assert (found["share"], found["longest"]) == (pytest.approx(14 / 29), 14)
    assert found["place"] == f"{files / 'half.csv'}: row 2"


def test_runs_do_not_reach_from_one_text_into_another():
    finder = Finder([["a b c d e f g h i j", "k l m n o p q r s t"]], 13)
    finder.search("f g h i j k l m n o p q r s", "x")
    assert finder.overlaps()[0].longest == 0
    finder.search("a b c d e f g h i j k", "y")
    assert (finder.overlaps()[0].share, finder.overlaps()[0].place) == (0.5, "y")


def test_words_are_those_that_people_see():
    assert words("It's 3.5 km, <b>you_know</b>; 北京 is É") == [
        *["it", "s", "3", "5", "km", "b", "you", "know", "b"],
        *["北", "京", "is", "é"],
    ]


def test_mistakes_are_said_in_one_line(files, tmp_path):
    for argv, code, said in [
        (["nowhere.jsonl", files / "chats.jsonl"], 66, "no such file"),
        ([files / "items.jsonl", "nowhere"], 66, "no such file or artifact"),
        ([files / "items.jsonl", tmp_path], 65, "a folder without manifest.json"),
        ([files / "items.jsonl", files / "chats.jsonl", "--words", "3"], 2, "from 8 on"),
        ([files / "items.jsonl", files / "chats.jsonl", "--over", "2"], 2, "expected a share"),
        ([files / "items.jsonl"], 2, "usage:"),
    ]:
        done = overlap(*argv)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert said in done.stderr
