"""A recipe in the form of another program makes the same artifacts, and its exit codes do what the file says."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import exports
import pytest
import tiny_tokenizer

from postmill.cli import again
from postmill.cli.chain import read_steps
from postmill.cli.child import Ended
from postmill.cli.export import FORMS, to_make
from postmill.io.errors import ConfigError
from postmill.io.manifest import load_artifact
from postmill.stages.runner import Options, run_stage

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "[tokenize]\nsystem = \"say $HOME {x} ${y} 'z'\"\n[pack]\nrow_tokens = 64\n"
TRAIN = "[train]\nsteps = 12\nbins_per_step = 1\nrank = 2\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, which is all that the quick tests need."""
    folder = tiny_tokenizer.write_tokenizer(tmp_path_factory.mktemp("export") / "base")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def here(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, chats, and programs on the path: postmill, and a Slurm of one machine."""
    (tmp_path / "base").symlink_to(base)
    (tmp_path / "chats.jsonl").write_text('{"query": "q", "response": "a"}\n' * 3)
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    for name, value in exports.write_programs(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    return tmp_path


def write(form: str, file: str, output: str = "out", **settings: str) -> None:
    said = {key.replace("__", "."): [value] for key, value in settings.items()}
    steps = read_steps(Path("r.toml"), {"model": ["base"], "data": ["chats.jsonl"]} | said, Path(output))
    Path(file).write_text(FORMS[form](steps))


def digests(output: str = "out", sections: tuple[str, ...] = ("tokenize", "pack")) -> list[str]:
    return [load_artifact(Path(output) / name).digest for name in sections]


def expected(sections: tuple[str, ...] = ("tokenize", "pack")) -> list[str]:
    """What `postmill run` makes, in this process."""
    for step in read_steps(Path("r.toml"), {"model": ["base"], "data": ["chats.jsonl"]}, Path("direct")):
        if step.name in sections:
            run_stage(step.stage, step.config, step.inputs, step.output, Options())
    return digests("direct", sections)


COMMANDS = {form: exports.COMMANDS[form] for form in ("make", "shell", "slurm")}


@pytest.mark.parametrize("form", COMMANDS)
def test_the_form_makes_the_same_artifacts(here: Path, form: str) -> None:
    write(form, "file")
    done = subprocess.run(COMMANDS[form], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digests() == expected()


def test_a_fault_of_the_data_stops_at_once_with_its_code(here: Path) -> None:
    for form, code, said in (("shell", 65, ""), ("make", 2, "Error 65"), ("slurm", 0, "")):
        write(form, "file", output=form, pack__row_tokens="3")
        done = subprocess.run(COMMANDS[form], capture_output=True, text=True, check=False)
        assert done.returncode == code and said in done.stderr, done.stderr
        assert done.stderr.count("do not fit in 3 tokens") == 1, "asked once"
        assert not Path(form, "pack").exists() and Path(form, "tokenize").exists()
    assert (here / "bin" / "log").read_text() == "tokenize 0\npack 65\n"


def test_make_looks_only_at_what_changed(here: Path) -> None:
    write("make", "file")
    subprocess.run(COMMANDS["make"], capture_output=True, check=True)
    again_ = subprocess.run(["make", "-n", "-f", "file"], capture_output=True, text=True, check=True)
    assert "Nothing to be done" in again_.stdout
    os.utime("chats.jsonl")
    plan = subprocess.run(["make", "-n", "-f", "file"], capture_output=True, text=True, check=True).stdout
    assert plan.count("postmill again") == 2


def test_make_refuses_what_it_cannot_hold(here: Path) -> None:
    Path("two words.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"two words.jsonl: make cannot hold this path"):
        to_make(read_steps(Path("r.toml"), {"model": ["base"], "data": ["two words.jsonl"]}, Path("out")))


@pytest.mark.parametrize(
    ("codes", "code", "calls"),
    [
        ([0], 0, 1),
        ([75, 75, 0], 0, 3),
        ([69, 0], 0, 2),
        ([75, 65, 0], 65, 2),
        ([78, 0], 78, 1),
        ([1, 0], 1, 1),
        ([-9, 0], 137, 1),
        ([75] * 9, 75, 3),
    ],
)
def test_again_goes_on_while_the_code_asks_for_it(
    codes: list[int], code: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(codes)
    monkeypatch.setattr(again, "run_child", lambda argv: Ended(left.pop(0), b"", told=False))
    assert again.run(["--attempts", "3", "--pause=0", "train", "packed/"]) == code
    assert len(codes) - len(left) == calls


def test_again_that_is_told_to_stop_does_not_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "run_child", lambda argv: Ended(75, b"", told=True))
    assert again.run(["train"]) == 75
    for wrong in ([], ["--attempts", "0", "train"], ["--often", "2", "train"]):
        with pytest.raises(ConfigError):
            again.run(wrong)


def test_the_dag_names_every_command(here: Path) -> None:
    write("airflow", "dag.py")
    tree = ast.parse(Path("dag.py").read_text())
    literal = next(
        node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STAGES"
    )
    stages = ast.literal_eval(literal.value)
    assert [(name, before) for name, (_, before) in stages.items()] == [("tokenize", []), ("pack", ["tokenize"])]
    for command, _ in stages.values():
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert digests() == expected()


def other(name: str) -> str:
    """Another program; skips the test where there is none."""
    found = exports.other(name)
    if found is None:
        pytest.skip(f"{name} is not installed; make programs")
    return found


@pytest.mark.slow
def test_snakemake_makes_the_same(here: Path) -> None:
    write("snakemake", "Snakefile")
    done = subprocess.run([other("snakemake"), "-c1", "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digests() == expected()
    again_ = subprocess.run([other("snakemake"), "-c1"], capture_output=True, text=True, check=True)
    assert "Nothing to be done" in again_.stdout + again_.stderr


@pytest.mark.slow
def test_dvc_makes_the_same(here: Path) -> None:
    write("dvc", "dvc.yaml")
    subprocess.run([other("dvc"), "init", "--no-scm", "-q"], check=True)
    done = subprocess.run([other("dvc"), "repro"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digests() == expected()
    again_ = subprocess.run([other("dvc"), "repro"], capture_output=True, text=True, check=True)
    assert "up to date" in again_.stdout


AIRFLOW = """
import runpy, sys
module = runpy.run_path("dag.py")
from airflow.sdk.exceptions import AirflowException, AirflowFailException
for name in ("tokenize", "pack"):
    module["tasks"][name].execute({})
assert module["tasks"]["pack"].upstream_task_ids == {"tokenize"}
codes = {}
for code in (75, 69, 65, 78):
    stage = module["Stage"](task_id=f"t{code}", command=["sh", "-c", f"exit {code}"])
    try:
        stage.execute({})
    except AirflowFailException:
        codes[code] = "fail"
    except AirflowException:
        codes[code] = "again"
assert codes == {75: "again", 69: "again", 65: "fail", 78: "fail"}, codes
"""


@pytest.mark.slow
def test_airflow_makes_the_same(here: Path) -> None:
    write("airflow", "dag.py")
    environment = os.environ | {"AIRFLOW_HOME": str(here / "airflow")}
    done = subprocess.run(
        [other("airflow"), "-c", AIRFLOW], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert digests() == expected()


def kubelet(pod: dict[str, Any], policy: dict[str, Any], attempts: int) -> tuple[int, list[str]]:
    """What a cluster does with the pod of a Job: init containers in order, again or failed by their exit codes."""
    ran = []
    for _ in range(attempts):
        for container in [*pod["initContainers"], *pod["containers"]]:
            words = [word.replace("$$(", "$(") for word in container["args"]]
            ran.append(container["name"])
            code = subprocess.run(["postmill", *words], capture_output=True, check=False).returncode
            if code:
                break
        else:
            return 0, ran
        codes = next(rule["onExitCodes"] for rule in policy["rules"] if rule["action"] == "FailJob")
        if codes["operator"] == "NotIn" and code not in codes["values"]:
            return code, ran
    return code, ran


def job_of(file: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    claim, job = yaml.safe_load_all(Path(file).read_text())
    assert claim["metadata"]["name"] == job["metadata"]["name"]
    [volume] = job["spec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    found: dict[str, Any] = job["spec"]
    return found


def test_kubernetes_runs_the_stages_in_order_to_the_same_artifacts(here: Path) -> None:
    write("k8s", "job.yaml")
    spec = job_of("job.yaml")
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # without which a podFailurePolicy is refused
    assert kubelet(pod, spec["podFailurePolicy"], 2) == (0, ["tokenize", "pack"])
    assert digests() == expected()
    write("k8s", "job.yaml", output="bad", pack__row_tokens="3")
    spec = job_of("job.yaml")
    assert kubelet(spec["template"]["spec"], spec["podFailurePolicy"], 2) == (65, ["tokenize", "pack"])
    with pytest.raises(ConfigError, match="a pod sees only the claim"):
        write("k8s", "job.yaml", output="/elsewhere")


def test_a_pod_that_was_stopped_is_started_again(here: Path) -> None:
    write("k8s", "job.yaml")
    spec = job_of("job.yaml")
    (here / "bin" / "postmill").write_text(
        "#!/bin/sh\n[ -e stopped ] || { touch stopped; exit 75; }\n"
        f'exec {sys.executable} -P -m postmill.cli.main "$@"\n'
    )
    assert kubelet(spec["template"]["spec"], spec["podFailurePolicy"], 3) == (0, ["tokenize", "tokenize", "pack"])


def test_several_ranks_ask_for_as_many_gpus(here: Path) -> None:
    Path("r.toml").write_text(RECIPE + TRAIN + "ranks = 2\n")
    write("k8s", "job.yaml", output="My Run_1")
    pod = job_of("job.yaml")["template"]["spec"]
    [train] = pod["containers"]
    assert train["resources"] == {"limits": {"nvidia.com/gpu": 2}} and train["args"][:3] == ["launch", "--ranks", "2"]
    assert yaml_name("job.yaml") == "my-run-1"
    write("ray", "flow.py")
    assert "GPUS = {'train': 2}" in Path("flow.py").read_text()


def yaml_name(file: str) -> str:
    import yaml

    return str(next(yaml.safe_load_all(Path(file).read_text()))["metadata"]["name"])


@pytest.mark.slow
def test_kubernetes_takes_the_manifest(here: Path) -> None:
    write("k8s", "job.yaml")
    done = subprocess.run(
        [other("kubernetes"), "-m", "kubernetes_validate", "--strict", "job.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_ray_makes_the_same_and_its_codes_do_what_the_file_says(here: Path) -> None:
    write("ray", "flow.py")
    text = Path("flow.py").read_text()
    Path("flow.py").write_text(text.replace("SHARDS = {'tokenize': 1}", "SHARDS = {'tokenize': 3}"))
    assert "SHARDS = {'tokenize': 3}" in Path("flow.py").read_text()
    done = subprocess.run([other("ray"), "flow.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "shard 3/3" in done.stdout + done.stderr, done.stderr
    assert digests() == expected()
    write("ray", "flow.py", output="bad", pack__row_tokens="3")
    done = subprocess.run([other("ray"), "flow.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 65 and "pack: exit code 65" in done.stderr, done.stderr
    (here / "bin" / "postmill").write_text(
        "#!/bin/sh\n[ -e stopped ] || { touch stopped; exit 75; }\n"
        f'exec {sys.executable} -P -m postmill.cli.main "$@"\n'
    )
    write("ray", "flow.py", output="again")
    done = subprocess.run([other("ray"), "flow.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digests("again") == expected()


def test_export_is_a_command(here: Path) -> None:
    argv = [sys.executable, "-P", "-m", "postmill.cli.main", "recipe", "export", "r.toml", "chats.jsonl", "-m", "base"]
    done = subprocess.run(
        [*argv, "-o", "out", "--to", "dvc", "--set", "pack.row_tokens=9"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stages = json.loads("".join(line for line in done.stdout.splitlines() if not line.startswith("#")))["stages"]
    assert list(stages) == ["tokenize", "pack"] and "--row-tokens 9" in stages["pack"]["cmd"]
    assert stages["tokenize"]["deps"] == ["chats.jsonl", "base/config.json"]
    wrong = subprocess.run([*argv, "-o", "out", "--to", "maek"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "did you mean make?" in wrong.stderr
