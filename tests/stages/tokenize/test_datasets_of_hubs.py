"""Data sets of both hubs, through the hubs' real clients: what is chosen, what is pinned, what failures say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_hub
import pytest
from fake_hub import COMMIT, Hub

PROGRAM = """
import json, sys
from postmill.stages.tokenize.sources import open_sources
try:
    data = open_sources(sys.argv[1:])
except ValueError as fault:
    print(json.dumps({"error": str(fault), "code": fault.code}))
else:
    rows = b"".join(chunk.data for chunk in data.chunks()).decode()
    print(json.dumps({"names": [s.name for s in data.sources], "source": data.datasets[0].source, "rows": rows}))
"""
CARD = "---\nconfigs:\n- config_name: a\n  data_files: a/*.jsonl\n- config_name: b\n  data_files: b/*.jsonl\n---\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "hub"
    for subset in ("a", "b"):
        folder = root / "owner" / "chats" / subset
        folder.mkdir(parents=True)
        (folder / "train[0].jsonl").write_text(f'{{"text":"{subset}"}}\n')
    (root / "owner" / "chats" / "README.md").write_text(CARD)
    return root


def ask(hub: Hub, home: Path, *references: str, **settings: str) -> dict[str, object]:
    """What a fresh process gets, since the clients read their endpoints when they are imported."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *references],
        env=os.environ | hub.environment(home) | settings,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    found: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_hugging_face(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    with fake_hub.fake_hub(repository) as hub:
        found = ask(hub, tmp_path, "hf:owner/chats:b")
        wanted = {
            "names": [f"hf:owner/chats@{COMMIT[:12]}/b/train[0].jsonl"],
            "source": f"hf:owner/chats@{COMMIT}",
            "rows": '{"text":"b"}\n',
        }
        assert found == wanted
        assert not hub.asked("GET", "/a/train"), "only what is read is downloaded"
        assert all(COMMIT in request for request in hub.asked("GET", "/resolve/")), "pinned to the commit"
        missing = ask(hub, tmp_path, "hf:owner/none")
        assert missing["code"] == 66 and str(missing["error"]).startswith("hf:owner/none: no such dataset")
        several = ask(hub, tmp_path, "hf:owner/chats")
        assert several["code"] == 2 and "there are a, b" in str(several["error"])
    gone = ask(hub, tmp_path, "hf:owner/chats:b")
    assert gone["code"] == 69 and "could not be fetched from Hugging Face" in str(gone["error"])
    assert ask(hub, tmp_path, "hf:owner/chats:b", HF_HUB_OFFLINE="1") == wanted
    other = ask(hub, tmp_path, "hf:owner/chats:a", HF_HUB_OFFLINE="1")
    assert other["code"] == 66 and "a/train[0].jsonl is not in the cache" in str(other["error"])


def test_modelscope(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with fake_hub.fake_hub(repository) as hub:
        found = ask(hub, tmp_path, "ms::owner/chats@v1:all")
        names = ["ms:owner/chats@v1/a/train[0].jsonl", "ms:owner/chats@v1/b/train[0].jsonl"]
        wanted = {"names": names, "source": "ms:owner/chats@v1", "rows": '{"text":"a"}\n{"text":"b"}\n'}
        assert found == wanted
        assert hub.asked("GET", "Revision=v1")
        missing = ask(hub, tmp_path, "ms:owner/none")
        assert missing["code"] == 66 and str(missing["error"]).startswith("ms:owner/none: no such dataset")
    assert ask(hub, tmp_path, "ms::owner/chats@v1:all", HF_HUB_OFFLINE="1") == wanted
