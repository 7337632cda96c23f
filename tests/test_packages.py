"""What goes into packages: the wheel has every file, extras have code behind them, every stage a program."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import man
import pytest

from postmill.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "modelscope-hub": "modelscope_hub",
    "liger-kernel": "liger_kernel",
    "flash-attn": "flash_attn",
    "pillow": "PIL",
}
"""Distributions that are imported by another name."""
ONLY_CALLED = {
    "compressed-tensors": "transformers loads what quantize makes with it",
    "num2words": "a processor of transformers asks for it",
    "torchvision": "processors of transformers ask for it",
}
"""Distributions that the code does not import, and who needs them."""


def test_every_stage_is_a_program() -> None:
    assert set(PROJECT["scripts"]) == {"postmill", *(f"postmill-{name}" for name in STAGES)}


def test_every_extra_has_code_behind_it() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("cli", "io", "kernels", "stages")
        for path in (ROOT / folder).rglob("*.py")
    )
    for extra, requirements in PROJECT["optional-dependencies"].items():
        for requirement in requirements if extra != "dev" else ():
            name = re.split(r"[\[><=;\s]", requirement)[0]
            module = MODULES.get(name, name.replace("-", "_"))
            named = re.search(rf"(import|from) {module}\b|[\"']{module}[\"']", code)
            assert name == "postmill" or name in ONLY_CALLED or named, f"{extra}: nothing uses {name}"


def test_the_images_name_extras_that_exist() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    for group in re.findall(r"whl\)\[([a-z,]+)\]", text):
        assert set(group.split(",")) <= set(PROJECT["optional-dependencies"])
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    assert len(stages) == 4 and all(re.findall(r"^USER (\w+)", part, re.M)[-1] == "postmill" for part in stages[1:])


@pytest.mark.slow
def test_the_sdist_makes_a_wheel_with_every_file(tmp_path: Path) -> None:
    pages = man.write(ROOT / "build" / "man")
    uv = [str(Path(sys.executable).with_name("uv")), "build", "-q", "--no-build-isolation"]
    uv += ["--python", sys.executable, "-o", str(tmp_path)]
    subprocess.run([*uv, "--sdist", str(ROOT)], check=True, cwd=tmp_path)
    [sdist] = tmp_path.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", str(sdist)], check=True, cwd=tmp_path)
    bare = [word for part in ("RUST", "CPP") for word in ("-C", f"cmake.define.POSTMILL_{part}=OFF")]
    subprocess.run([*uv, "--wheel", *bare, str(tmp_path / sdist.name.removesuffix(".tar.gz"))], check=True)
    [wheel] = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "cli", "io", "kernels", "stages", "recipes"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    missing = [name for name in tracked if name and f"postmill/{name}" not in packed]
    assert not missing
    placed = {name.rpartition("/")[2] for name in packed if name.endswith(".1") and "/data/share/man/man1/" in name}
    assert placed == {page.name for page in pages}
