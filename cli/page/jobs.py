"""Runs that the page has started: processes of their own that go on without page and server, and what is known of them.

A job is a folder below `.postmill/jobs`: `job.json` (the command, its process), `log` (its stderr), `out` (its stdout),
and `code` once it has ended. Stopping is SIGTERM: a stage saves and ends with 75, and the same command goes on.
"""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.page.guard import Refused

_LOG_BYTES = 16_000


class Job(msgspec.Struct):
    """What is written down of a run when it starts."""

    argv: list[str]
    output: str
    pid: int
    ticks: int
    """When the process began, as the kernel counts: another process of the same number has another one."""
    started: float
    seconds_before: float = 0.0
    """How long the starts before this one took."""


class Jobs:
    """All runs of a folder."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        self._root, self._folder, self._env = root, root / ".postmill" / "jobs", env
        self._children: list[subprocess.Popen[bytes]] = []
        self._lock = threading.RLock()

    def start(self, argv: list[str], output: str) -> str:
        """Start a command. Returns the job's name. Raises Refused (409) if a job that runs has the same output."""
        with self._lock:
            for one in self.all():
                if one["state"] == "running" and one["output"] == output:
                    raise Refused(409, f"{output}: {one['name']} is writing there; stop it, or choose another output")
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
            self._start(self._folder / name, argv, output)
            return name

    def resume(self, name: str) -> None:
        """Run the command of a job that has ended once more. Raises Refused (404, 409)."""
        with self._lock:
            job = self._job(name)
            if self._state(name, job)[0] == "running":
                raise Refused(409, f"{name}: it runs")
            self._start(self._folder / name, job.argv, job.output, seconds_before=self._seconds(name, job))

    def stop(self, name: str) -> None:
        """Tell a job to save and end. Raises Refused (404)."""
        with self._lock:
            job = self._job(name)
            if self._state(name, job)[0] == "running":
                os.kill(job.pid, signal.SIGTERM)

    def all(self) -> list[dict[str, Any]]:
        """Every job, the newest first."""
        with self._lock:
            found = sorted((path.parent.name for path in self._folder.glob("*/job.json")), reverse=True)
            return [self._about(name) for name in found]

    def look(self, name: str) -> dict[str, Any]:
        """One job with the end of its log. Raises Refused (404)."""
        with self._lock:
            about = self._about(name)
        return about | {"log": _tail(self._folder / name / "log"), "out": _tail(self._folder / name / "out")}

    def _start(self, folder: Path, argv: list[str], output: str, *, seconds_before: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "code").unlink(missing_ok=True)
        program = [sys.executable, "-P", "-m", "postmill.cli.page.keep", str(folder / "code"), *argv]
        with (folder / "log").open("ab") as log, (folder / "out").open("ab") as out:
            # a session of its own: what ends the server, or closes its terminal, does not end the run
            child = subprocess.Popen(
                program, stdin=subprocess.DEVNULL, stdout=out, stderr=log, cwd=self._root, start_new_session=True,
                env=self._env,
            )  # fmt: skip
        self._children.append(child)
        job = Job(argv, output, child.pid, _ticks(child.pid), time.time(), seconds_before)
        beside = folder / ".job.json"
        beside.write_bytes(msgspec.json.encode(job))
        beside.replace(folder / "job.json")

    def _job(self, name: str) -> Job:
        path = self._folder / name / "job.json"
        if "/" in name or name.startswith(".") or not path.is_file():
            raise Refused(404, f"{name[:60]}: no such run")
        return msgspec.json.decode(path.read_bytes(), type=Job)

    def _about(self, name: str) -> dict[str, Any]:
        job = self._job(name)
        state, code = self._state(name, job)
        return {
            "name": name,
            "command": ["postmill", *job.argv],
            "output": job.output,
            "state": state,
            "code": code,
            "started": job.started,
            "seconds": round(self._seconds(name, job), 1),
        }

    def _seconds(self, name: str, job: Job) -> float:
        """How long a job has run, all its starts together. One whose process is gone ran until its last word."""
        state, _ = self._state(name, job)
        folder = self._folder / name
        until = time.time() if state == "running" else (folder / ("log" if state == "gone" else "code")).stat().st_mtime
        return job.seconds_before + max(0.0, until - job.started)

    def _state(self, name: str, job: Job) -> tuple[str, int | None]:
        """running, done, stopped (the same command goes on), failed, or gone (its process ended without a word)."""
        for child in self._children:
            child.poll()  # so that what has ended is no longer a process
        runs = _ticks(job.pid) == job.ticks != 0
        ended = self._folder / name / "code"
        if ended.is_file():
            code = int(ended.read_text())
            return {0: "done", 75: "stopped"}.get(code, "failed"), code
        return ("running" if runs else "gone"), None


def _ticks(pid: int) -> int:
    """When a process began; 0 if there is none, or only its exit code is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def _tail(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        return file.read().decode(errors="replace")
