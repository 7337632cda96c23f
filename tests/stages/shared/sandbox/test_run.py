"""What programs in the sandbox get, and what is told of how they ended."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from postmill.io.errors import ConfigError
from postmill.stages.shared.sandbox import run
from postmill.stages.shared.sandbox.run import Limits, missing, run_command, run_python

KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(bool(missing(kind)), reason=missing(kind)))
    for kind in ("strong", "weak")
]


@pytest.mark.parametrize("kind", KINDS)
def test_programs_read_and_write(kind):
    source = "import json, data\nprint(json.dumps([input(), data.VALUE]))\nopen('new', 'w').write('é')\n"
    # the folder is not on the path of an isolated interpreter: a program adds it as scripts do
    ran = run_python(
        "import sys; sys.path.insert(0, '')\n" + source, stdin="ünï\n", files={"data.py": "VALUE = 3"}, kind=kind
    )
    assert (ran.status, ran.exit_code, ran.has_ended) == ("ok", 0, True), ran
    assert ran.stdout == '["\\u00fcn\\u00ef", 3]\n'


@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_told_apart(kind):
    failed = run_python("def f():\n    assert 1 == 2, 'no'\nf()", kind=kind)
    assert (failed.status, failed.exit_code, failed.has_ended) == ("failed", 1, False)
    assert 'File "program.py", line 2, in f' in failed.stderr and "AssertionError: no" in failed.stderr
    assert run_python("exit(7)", kind=kind).exit_code == 7
    assert run_python("import os; os.abort()", kind=kind).reason == "crashed:SIGABRT"
    assert run_python("x = (", kind=kind).status == "failed"
    assert run_python("while True: pass", limits=Limits(time_s=0.3), kind=kind).status == "timeout"


@pytest.mark.parametrize("kind", KINDS)
def test_commands_run(kind):
    ran = run_command(
        ["/bin/sh", "-c", "read line; echo $line $(cat there); exit 3"], stdin="a\n", files={"there": "b"}, kind=kind
    )
    assert (ran.status, ran.exit_code, ran.stdout) == ("failed", 3, "a b\n")


def test_weak_leaves_nothing_behind(tmp_path):
    mark = f"weak-{os.getpid()}"
    source = f"""
import os, time
print(os.getcwd(), flush=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv('/bin/sh', ['/bin/sh', '-c', 'sleep 1000; : {mark}'])
    os._exit(0)
"""
    ran = run_python(source, kind="weak")
    assert ran.status == "ok"
    assert not Path(ran.stdout.strip()).exists()
    assert mark not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_weak_has_no_network_and_signals_nobody(kind):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
        ran = run_python(f"import os\nos.kill({victim.pid}, 9)", kind=kind)
        assert victim.poll() is None
        victim.kill()
    assert ran.status == "failed"
    assert (
        "OSError" in (err := run_python("import socket\nsocket.socket()", kind=kind).stderr) or "PermissionError" in err
    )


@pytest.mark.parametrize("kind", KINDS)
def test_many_run_at_a_time(kind):
    found = {}

    def one(number: int) -> None:
        found[number] = run_python(f"print({number})", kind=kind).stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}\n" for number in range(8)}


def test_packages_are_there_where_they_are_wanted():
    assert run_python("import msgspec", packages=True, kind="weak" if missing("strong") else "strong").status == "ok"


def test_what_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(run, "missing", lambda kind: "no namespaces" if kind == "strong" else "")
    with pytest.raises(ConfigError, match="--sandbox weak") as caught:
        run_python("1")
    assert caught.value.code == 77


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_costs_that_program_alone(kind):
    assert run_python("print('a\ud800b')", kind=kind).stdout == "a?b\n"


def test_names_of_files_stay_in_the_folder():
    for name in ("../x", "/x", "..", ""):
        with pytest.raises(ValueError, match="name of a file"):
            run_python("1", files={name: ""}, kind="weak")
