"""The page by clicks, in a real browser: rows, masks, options, a run that is stopped and goes on, a look, a talk.

Pictures go to build/pictures; those in docs/img are from there. The check for accessibility needs `axe-core` in
.cache/axe (`make programs`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab, browsing, chromium

pytest.importorskip("torch")
pytest.importorskip("uvicorn")

from tiny_chat import write_chat_model

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / ".cache" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = ROOT / "build" / "pictures"
STEPS = 150
"""So many that the run is still at work when it is told to stop."""

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    chromium()
    write_chat_model(tmp_path / "base", longest=1024, template=TEMPLATE)
    rows = [
        {"messages": [
            {"role": "user", "content": f"what is {i} + {i}?"}, {"role": "assistant", "content": f"it is {2 * i}."},
            {"role": "user", "content": "are you sure?"}, {"role": "assistant", "content": "yes."},
        ]}
        for i in range(8)
    ]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [sys.executable, "-P", "-m", "postmill.cli.main", "ui", str(tmp_path), "--allow-run"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def violations(tab: Tab) -> list[str]:
    """What axe finds wrong in what is shown now."""
    if not AXE.is_file():
        return []
    tab.run(AXE.read_text(encoding="utf-8") + "; 0")
    found = tab.run("axe.run().then((found) => found.violations.map((one) => `${one.id}: ${one.nodes[0].html}`))")
    return list(found)


def test_the_whole_path_by_clicks(address: str, tmp_path: Path) -> None:
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    with browsing(tmp_path / "profile") as tab:
        opened = [tab.opened(address) for _ in range(3)]
        print(f"page ready, wall and processor: {opened}")
        assert min(min(pair) for pair in opened) < 1, "the wall, or the processor where others hold the cores"
        _rows_and_masks(tab)
        _options(tab)
        _a_run(tab)
        _a_look(tab, address)
        _a_talk(tab)
        _another_language_and_the_dark(tab)
        host = address.split("/")[2]
        assert {url.split("/")[2] for url in tab.requests if url.startswith("http")} == {host}


def _shown(tab: Tab, name: str) -> None:
    assert violations(tab) == []
    tab.picture(PICTURES / f"{name}.png")


def _rows_and_masks(tab: Tab) -> None:
    tab.fill("#data", "chats.jsonl")
    tab.fill("#model", "base")
    trained = "document.querySelectorAll('#rows .w1').length"
    first = tab.wait(trained)
    tab.fill("#mask-loss_scale", "last_round")
    tab.wait(f"{trained} > 0 && {trained} < {first}")
    assert "--set tokenize.loss_scale=last_round" in tab.run("document.querySelector('#command').textContent")
    assert 'loss_scale = "last_round"' in tab.run("document.querySelector('#toml').textContent")
    _shown(tab, "ui-data")


def _options(tab: Tab) -> None:
    tab.click("#tab-options")
    tab.wait("document.querySelector('#memory dd') !== null")
    tab.fill("[id='field-train.lr']", "0.01")
    tab.click("#every")
    tab.fill("[id='field-train.steps']", str(STEPS))
    tab.wait(f"document.querySelector('#command').textContent.includes('train.steps={STEPS}')")
    tab.fill("[id='field-pack.row_tokens']", "-1")
    faults, run = "document.querySelector('#faults').textContent", "document.querySelector('#run').disabled"
    tab.wait(f"{faults}.includes('row_tokens') && {run}")
    tab.fill("[id='field-pack.row_tokens']", "256")
    tab.wait(f"{faults} === '' && !{run}")
    tab.click("#every")
    _shown(tab, "ui-options")


def _a_run(tab: Tab) -> None:
    tab.click("#run")
    tab.wait("document.querySelectorAll('#curves .curve').length > 1")
    tab.run("location.reload()")  # the run does not need the page
    tab.wait("document.body.dataset.ready === 'yes'")
    tab.click("#tab-runs")
    tab.click("[data-act=stop]")
    tab.wait("document.querySelector('tr[data-state=stopped]') !== null")
    assert "(75)" in tab.run("document.querySelector('tr[data-state=stopped]').innerText")
    tab.click("[data-act=resume]")
    tab.wait("document.querySelector('tr[data-state=done]') !== null")
    tab.wait("document.querySelector('tr[data-state=done] [data-act=resume]') === null")  # nothing to go on with
    cut = (
        "[...document.querySelectorAll('#curves svg')].flatMap((svg) => [...svg.querySelectorAll('text')].filter((t) =>"
    )
    edges = "t.getBBox().x < 0 || t.getBBox().x + t.getBBox().width > svg.width.baseVal.value)).length"
    assert tab.run(f"{cut} {edges}") == 0, "numbers at the ends of a curve are whole"
    assert f"step {STEPS}/{STEPS}" in tab.wait("document.querySelector('#job').innerText")
    _shown(tab, "ui-runs")


def _a_look(tab: Tab, address: str) -> None:
    tab.click("#tab-artifacts")
    tab.wait("document.querySelectorAll('#artifacts tbody tr').length === 4")
    _shown(tab, "ui-artifacts")
    seen = tab.run("ask('view', { name: 'out/pack' }).then((found) => found.address)")
    tab.open(address.partition("#")[0].rstrip("/") + seen)
    tab.wait("document.body.dataset.ready === 'yes' && document.querySelectorAll('.t').length > 10")
    tab.open(address)
    tab.wait("document.title === 'Postmill' && document.body.dataset.ready === 'yes'")


def _a_talk(tab: Tab) -> None:
    tab.click("#tab-talk")
    tab.fill("#talk-base", "base")
    tab.fill("#talk-tuned", "out/train")
    tab.click("#talk-start")
    tab.wait("document.querySelectorAll('#talk h2').length === 2")
    tab.fill("#question", "what is 2 + 2?")
    tab.click("#ask button")
    tab.wait("document.querySelectorAll('#talk .assistant').length === 2")
    base, tuned = tab.run("[...document.querySelectorAll('#talk .assistant')].map((one) => one.textContent)")
    assert base != tuned and tuned, (base, tuned)
    _shown(tab, "ui-talk")


def _another_language_and_the_dark(tab: Tab) -> None:
    tab.dark(True)
    tab.fill("#language", "zh")
    tab.wait("document.querySelector('#tab-data').textContent === '数据'")
    for name in ("data", "options", "runs", "artifacts", "talk"):
        tab.click(f"#tab-{name}")
        tab.wait(f"!document.querySelector('#panel-{name}').hidden")
        assert violations(tab) == [], name
    tab.click("#tab-data")
    tab.wait("document.querySelectorAll('#rows .t').length > 10")
    _shown(tab, "ui-dark")
