"""The DAG's commands are commands: the cheap ones run, the others plan."""

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import tiny_model
import tiny_tokenizer

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "airflow_dag.py"


def commands() -> dict[str, str]:
    """The literal in the source, which needs no Airflow to read."""
    for statement in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "COMMANDS":
            found: dict[str, str] = ast.literal_eval(statement.value)
            return found
    raise AssertionError("no COMMANDS")


def test_the_commands_of_the_dag_run(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path / "base", vocab_size=263, dtype="float32")
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.write_tokenizer(tmp_path / "base")
    rows = [{"query": f"q{i}", "response": "a"} for i in range(9)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.toml").write_text("[pack]\nrow_tokens = 64\n[train]\nsteps = 2\n")
    names = {"MODEL": "base", "CHATS": "chats.jsonl", "RECIPE": "recipe.toml", "OUT": "out", "QUESTIONS": "q.jsonl"}
    program = f'postmill() {{ {shlex.quote(sys.executable)} -P -m postmill.cli.main "$@"; }}\n'
    made = []
    (tmp_path / "out").mkdir()
    for name, command in list(commands().items())[:3]:
        plan = command.removeprefix("exec ") + (" --dry-run" if name == "train" else "")
        for again in (False, True):
            done = subprocess.run(
                ["bash", "-c", program + plan], cwd=tmp_path, env=os.environ | names, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr.decode()
            assert not again or name == "train" or b"up to date" in done.stderr, (
                "a task that is run again costs nothing"
            )
        made.append(name)
    assert made == ["tokenize", "pack", "train"] and list(commands())[3:] == ["merge", "eval"]
