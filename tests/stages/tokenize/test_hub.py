"""Both hubs' real clients against a small hub on loopback: what is chosen, what is pinned, what failures say."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Tests are imported by path, not as a package.
_spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).with_name("fake_hub.py"))
assert _spec and _spec.loader
fake_hub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_hub)

PROGRAM = """
import json, sys
from postmill.stages.tokenize.sources import open_sources
try:
    data = open_sources(sys.argv[1:])
except ValueError as fault:
    print(json.dumps({"error": str(fault), "code": fault.code}))
else:
    rows = b"".join(chunk.data for chunk in data.chunks()).decode()
    print(json.dumps({"names": [s.name for s in data.sources], "revision": data.datasets[0].revision, "rows": rows}))
"""
CARD = "---\nconfigs:\n- config_name: a\n  data_files: a/*.jsonl\n- config_name: b\n  data_files: b/*.jsonl\n---\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "hub"
    for subset in ("a", "b"):
        folder = root / "owner" / "chats" / subset
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text(f'{{"text":"{subset}"}}\n')
    (root / "owner" / "chats" / "README.md").write_text(CARD)
    return root


def ask(url: str, home: Path, *references: str) -> dict[str, object]:
    """What a fresh process gets, since the clients read their endpoints when they are imported."""
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MODELSCOPE_ENDPOINT": url,
        "MODELSCOPE_CACHE": str(home / "ms"),
        "MODELSCOPE_HOME": str(home / "ms-home"),
        "HOME": str(home),
    }
    argv = [sys.executable, "-c", PROGRAM, *references]
    run = subprocess.run(
        argv,
        env={**os.environ, "HF_HUB_OFFLINE": "0", **settings},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    found: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_hugging_face(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    with fake_hub.fake_hub(repository) as (url, requests):
        found = ask(url, tmp_path, "hf:owner/chats:b")
        commit = fake_hub.COMMIT
        assert found == {
            "names": [f"hf:owner/chats@{commit[:12]}/b/train.jsonl"],
            "revision": commit,
            "rows": '{"text":"b"}\n',
        }
        assert not any("/a/train.jsonl" in request for request in requests), "only what is read is downloaded"
        assert all(commit in request for request in requests if "/resolve/" in request), "pinned to the commit"
        missing = ask(url, tmp_path, "hf:owner/none")
        assert missing["code"] == 66 and str(missing["error"]).startswith("hf:owner/none: ")
        several = ask(url, tmp_path, "hf:owner/chats")
        assert several["code"] == 2 and "there are a, b" in str(several["error"])
    gone = ask(url, tmp_path, "hf:owner/chats:b")
    assert gone["code"] == 69 and "the hub cannot be reached" in str(gone["error"])


def test_modelscope(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with fake_hub.fake_hub(repository) as (url, requests):
        found = ask(url, tmp_path, "ms::owner/chats@v1:all")
        names = ["ms:owner/chats@v1/a/train.jsonl", "ms:owner/chats@v1/b/train.jsonl"]
        assert found == {"names": names, "revision": "v1", "rows": '{"text":"a"}\n{"text":"b"}\n'}
        assert any("Revision=v1" in request for request in requests)
        missing = ask(url, tmp_path, "ms:owner/none")
        assert missing["code"] == 66 and str(missing["error"]).startswith("ms:owner/none: ")
