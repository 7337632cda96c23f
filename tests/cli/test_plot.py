"""`plot` draws what a run recorded, where it lies and as far as it went."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from postmill.cli.plot import run
from postmill.io.errors import ArtifactError, ConfigError


def write(folder, values):
    folder.mkdir(parents=True)
    lines = [{"step": n, "loss": v, "lr": 1e-3 / n} | ({"valid_loss": v + 1} if n % 4 == 0 else {}) for n, v in values]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(tmp_path):
    write(tmp_path / "a", [(n, 4 / n) for n in range(1, 17)])
    write(tmp_path / "b.checkpoints", [(n, 2.0) for n in range(1, 9)])  # not finished
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_a_falling_curve_falls_in_the_terminal(runs, capsys):
    assert run([runs[0]]) == 0
    title, *rows, steps = capsys.readouterr().out.splitlines()
    assert title == "loss"
    assert len(rows) == 12
    drawn = [[ord(c) > 0x2800 for c in row[11:]] for row in rows]
    tops = [next(r for r in range(12) if drawn[r][c]) for c in range(len(drawn[0])) if any(d[c] for d in drawn)]
    assert tops[0] == 0
    assert tops == sorted(tops)
    assert len(tops) == len(drawn[0]), "a column without a dot: the line has gaps"
    assert steps.split() == ["1", "16"]


def test_runs_are_drawn_over_one_another_as_svg(runs, tmp_path, capsys):
    assert run([*runs, "--of", "loss,valid_loss", "-o", str(tmp_path / "x.svg")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "x-loss.svg"), str(tmp_path / "x-valid_loss.svg")]
    loss = ElementTree.parse(tmp_path / "x-loss.svg").getroot()
    assert (
        len({line.get("stroke") for line in loss.findall(".//{*}polyline")}) == 4
    )  # two runs: a line and its mean each
    valid = ElementTree.parse(tmp_path / "x-valid_loss.svg").getroot()
    assert len(list(valid.findall(".//{*}circle"))) == 4 + 2
    assert [len(line.get("points").split()) for line in valid.findall(".//{*}polyline")][-2:] == [4, 2]


def test_what_can_be_drawn_is_listed_and_what_cannot_is_named(runs, tmp_path, capsys):
    assert run([runs[0], "--list"]) == 0
    assert capsys.readouterr().out.split() == ["loss", "lr", "valid_loss"]
    with pytest.raises(ConfigError, match="--of los: no such measure; did you mean loss"):
        run([runs[0], "--of", "los"])
    with pytest.raises(ArtifactError, match=r"no metrics\.jsonl there") as caught:
        run([str(tmp_path / "nothing")])
    assert caught.value.code == 66


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"\xff": 1}', b"[" * 5000])
def test_a_damaged_line_is_named(runs, line):
    file = Path(runs[0]) / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + line + b"\n")
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl:17: not a JSON object"):
        run([runs[0]])
