"""One page that shows an artifact, stays small, lets nothing in or out, and draws 100,000 rows."""

import base64
import gzip
import hashlib
import json
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import browser
import pytest
import tiny_tokenizer
import token_tables

from postmill.cli import view
from postmill.cli.view_page import LIMIT_BYTES
from postmill.io.errors import ArtifactError
from postmill.io.model_folder import tokenizer_digest
from postmill.stages.options import make
from postmill.stages.pack.config import STAGE as PACK
from postmill.stages.pack.config import Pack
from postmill.stages.runner import Options, run_stage
from postmill.stages.tokenize.config import STAGE as TOKENIZE
from postmill.stages.tokenize.config import Tokenize

HOSTILE = "</script><script>document.title='x'</script><img src=http://evil.example/x onerror=alert(1)>&lt;\u202e\u2028"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    base = tiny_tokenizer.write_tokenizer(folder / "base")
    rows = [{"query": f"{HOSTILE} {i}", "response": f"in the {HOSTILE}"} for i in range(6)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"data": [str(folder / "chats.jsonl")], "model": [str(base)]}
    run_stage(TOKENIZE, make(Tokenize), given, folder / "out" / "tokenize", Options())
    given = {"tokens": [str(folder / "out" / "tokenize")]}
    run_stage(PACK, make(Pack, row_tokens=1024), given, folder / "out" / "pack", Options())
    return folder


def page(folder: Path, target: Path, *more: str) -> tuple[str, dict[str, Any]]:
    assert view.run([str(folder), "-o", str(target), *more]) == 0
    text = target.read_text(encoding="utf-8")
    packed = re.search(r'id="data">([^<]*)</script>', text)
    assert packed is not None
    return text, json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_tokens_have_id_weight_role_and_place(world: Path, tmp_path: Path) -> None:
    _, data = page(world / "out" / "tokenize", tmp_path / "x.html")
    [table] = data["tables"]
    assert table["total"] == 6 and len(table["details"]) == 6
    assert [column["name"] for column in table["columns"]] == ["row", "source", "line", "tokens", "trained", "weight"]
    [block, *_] = table["details"]["2"]
    assert block["place"] == "chats.jsonl:3"
    text = "".join(word for words, *_ in block["pieces"] for word in words)
    assert "in the </script>" in text
    trained = [(ids, role) for _, ids, weight, role in block["pieces"] if weight]
    assert sum(len(one) for ids, _ in trained for one in ids) == table["columns"][4]["data"][2]
    assert {role for _, role in trained} == {"assistant"}
    assert sum(len(one) for _, ids, *_ in block["pieces"] for one in ids) == table["columns"][3]["data"][2]
    assert all(len(words) == len(ids) for words, ids, *_ in block["pieces"])


def test_bins_and_lineage_of_a_folder(world: Path, tmp_path: Path) -> None:
    _, data = page(world / "out", tmp_path / "x.html")
    assert [table["name"] for table in data["tables"]] == ["pack", "tokenize"]
    bins = data["tables"][0]
    bar = bins["details"]["0"][0]
    assert sum(length for length, _ in bar["segments"]) == bins["columns"][1]["data"][0] <= bar["total"] == 1024
    titles = [node["title"] for node in data["graph"]["nodes"]]
    assert titles[0] == "pack" and "tokenize" in titles[1]
    assert [0] in [[end] for start, end in data["graph"]["edges"] if start == 1]
    assert [name for name, _ in data["summary"]] == ["about pack", "about tokenize"]


def test_nothing_gets_in_and_nothing_gets_out(world: Path, tmp_path: Path) -> None:
    nasty = world / "out<b>"
    if not nasty.exists():
        shutil.copytree(world / "out", nasty)
    text, _ = page(nasty, tmp_path / "x.html")
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "evil.example" not in text
    assert "<b>" not in text and "&lt;b&gt;" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and policy[1].startswith("default-src 'none'")
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert body is not None
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy[1]
    assert not re.search(
        r"innerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttp|https?://(?!www\.w3\.org)", text
    )


def test_a_tokenizer_that_is_gone_leaves_ids(world: Path, tmp_path: Path) -> None:
    (world / "base").rename(world / "aside")
    try:
        _, data = page(world / "out" / "tokenize", tmp_path / "x.html")
    finally:
        (world / "aside").rename(world / "base")
    words, ids, *_ = data["tables"][0]["details"]["0"][0]["pieces"][0]
    assert words == [f"{one} " for [one] in ids]


def large(folder: Path, count: int) -> Path:
    """Tokens of many rows."""
    base = folder / "base"
    tiny_tokenizer.write_tokenizer(base)
    rows = [token_tables.row([65 + i % 26] * (8 + i % 40), [(4, 8, 1.0)]) for i in range(count)]
    token_tables.write_tokens(folder / "many", token_tables.to_batches(rows), {"tokenizer": tokenizer_digest(base)})
    return folder / "many"


def test_many_rows_stay_below_the_limit(tmp_path: Path) -> None:
    _, data = page(large(tmp_path, 6_000), tmp_path / "x.html", "-m", str(tmp_path / "base"), "-n", "6000")
    table = data["tables"][0]
    assert len(table["columns"][0]["data"]) == 6_000
    assert (tmp_path / "x.html").stat().st_size < LIMIT_BYTES
    assert table["details"], "some rows keep their tokens"


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact in it"):
        view.run([str(tmp_path)])
    with pytest.raises(ArtifactError, match="no such artifact"):
        view.run([str(tmp_path / "none")])


def dump(file: Path, folder: Path, *more: str) -> str:
    """The page's elements after its script has run, in a browser without a network."""
    argv = [browser.chromium(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    argv += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=8000", *more, f"file://{file}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=200, check=True).stdout


@pytest.mark.slow
def test_a_browser_draws_it(world: Path, tmp_path: Path) -> None:
    page(world / "out", tmp_path / "x.html")
    drawn = dump(tmp_path / "x.html", tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in drawn and drawn.count('role="tab"') == 5
    assert "<title>out</title>" in drawn and drawn.count("<script") == 2 and "<img" not in drawn
    assert drawn.count('class="t w1"') > 5 and 'class="segment' in drawn and "chats.jsonl:1" in drawn


@pytest.mark.slow
def test_a_browser_draws_100_000_rows(tmp_path: Path) -> None:
    page(large(tmp_path, 100_000), tmp_path / "x.html", "-m", str(tmp_path / "base"))
    assert (tmp_path / "x.html").stat().st_size < LIMIT_BYTES
    drawn = dump(tmp_path / "x.html", tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in drawn and "100,000" in drawn
    assert drawn.count('class="row"') < 200, "only the rows in sight are elements"


def gigabyte(folder: Path) -> Path:
    """Tokens of 130,000 generated chats of 1,500 to 2,500 letters, of which each is a token or nearly: 1 GB."""
    base = tiny_tokenizer.write_tokenizer(folder / "base")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(500)]
    answers = [" ".join(rng.choices(words, k=rng.randint(230, 400))) for _ in range(200)]
    with (folder / "chats.jsonl").open("w") as file:
        for number in range(130_000):
            file.write(f'{{"query": "question {number}", "response": "{number}: {rng.choice(answers)}"}}\n')
    given = {"data": [str(folder / "chats.jsonl")], "model": [str(base)]}
    run_stage(TOKENIZE, make(Tokenize), given, folder / "tokens", Options())
    return folder / "tokens"


@pytest.mark.slow
def test_an_artifact_of_a_gigabyte_is_there_within_two_seconds(tmp_path: Path) -> None:
    tokens = gigabyte(tmp_path)
    size = sum(file.stat().st_size for file in tokens.iterdir())
    assert size > 1_000_000_000
    began = time.monotonic()
    assert view.run([str(tokens), "-o", str(tmp_path / "x.html")]) == 0
    made_s, page_bytes = time.monotonic() - began, (tmp_path / "x.html").stat().st_size
    with browser.browsing(tmp_path / "profile") as tab:
        opened = [tab.opened(f"file://{tmp_path}/x.html") for _ in range(3)]
        assert tab.run("document.querySelector('.row') !== null") and "130,000" in tab.run("document.body.innerText")
        tokens_seen = tab.run("document.querySelectorAll('.t').length")
        assert all(url.startswith(("file://", "about:", "data:")) for url in tab.requests)
    print(f"{size:,} bytes: page in {made_s:.1f} s, {page_bytes:,} bytes; first rows, wall and processor {opened}")
    assert page_bytes < LIMIT_BYTES and tokens_seen > 100
    assert min(min(pair) for pair in opened) < 2, "the wall, or the processor where others hold the cores"
