"""A real Whisper writes down real sentences, through `eval`."""

import importlib
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "sounds"


@pytest.mark.slow
def test_whisper_writes_down_what_is_read_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 of 71 words: two are its own errors, `Mr.` is `mister` in the transcript, and one word stands there twice."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    try:
        errors = importlib.import_module("transcribe").run(tmp_path)
    except subprocess.CalledProcessError as error:
        if "download" in error.cmd:
            pytest.skip("its packages cannot be fetched")
        raise
    assert errors <= 0.06
    assert "He might even have been made amiable himself." in capsys.readouterr().out
