"""Servers that answer for one run: started on a port of this machine only, asked by URL, ended with the run.

A server hears of the end of the process that started it, however that ends (Linux's parent-death signal). What it says
goes to a file of its own, whose end is shown if it fails.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from postmill.io.errors import UNAVAILABLE, USAGE, ConfigError, StageError
from postmill.io.model_folder import ADAPTER_CONFIG
from postmill.stages.progress import Progress
from postmill.stages.shared.engine.endpoint import Endpoint
from postmill.stages.shared.engine.options import Command, Vllm, Wanted
from postmill.stages.shared.engine.protocol import Loaded
from postmill.stages.shared.engine.url import UrlEngine
from postmill.stages.shared.ports import free_port

_NAME = "policy"
"""What a model with an adapter is called."""
_UNTIL_PARENT_ENDS = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); os.execvp(sys.argv[1], sys.argv[1:])"
)
_GRACE_S = 20.0
_SHOWN_BYTES = 2000
_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
_PASSED_ON_PREFIXES = (
    "CUDA",
    "NVIDIA",
    "HF_",
    "VLLM_",
    "OMP_",
    "MKL_",
    "NCCL_",
    "TORCH",
    "TRITON",
    "XDG_",
    "ROCM",
)


@contextlib.contextmanager
def start_vllm(options: Vllm, wanted: Wanted) -> Iterator[UrlEngine]:
    """vLLM with a model, or with a base and one LoRA adapter. Raises StageError (69), ConfigError (2)."""
    import torch

    on_gpu = torch.cuda.is_available()
    dtype = ("bfloat16" if on_gpu else "float32") if wanted.dtype == "auto" else wanted.dtype
    port = free_port()
    argv = [options.engine_python or sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(wanted.folders[0]), "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    # of what was drawn from: the temperature is in them
    argv += ["--logprobs-mode", "processed_logprobs", "--max-num-seqs", str(wanted.batch_size)]
    adapter = _adapter(wanted)
    if adapter is not None:
        rank = _rank(adapter)
        argv += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{_NAME}={adapter}"]
    if not on_gpu:
        argv += ["--enforce-eager"]
    argv += options.engine_arguments
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if not on_gpu:
        # compiling for the first log-prob takes half a minute; by default the cache takes most of the memory
        quiet |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": str(wanted.threads)}
        quiet |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{wanted.threads - 1}" if wanted.threads > 1 else "0"}
    with _running(argv, port, quiet, options.start_timeout_s):
        yield _engine(wanted, port, name=_NAME if adapter else "", is_processed=True)


@contextlib.contextmanager
def start_command(options: Command, wanted: Wanted) -> Iterator[UrlEngine]:
    """Whatever the command line starts. Raises StageError (69), ConfigError (2)."""
    port, adapter = free_port(), _adapter(wanted)
    if adapter is not None and "{adapter}" not in options.engine_command:
        raise ConfigError("--engine-command: there is an adapter, and no {adapter} to put it; merge it first", USAGE)
    values = {"{port}": str(port), "{model}": str(wanted.folders[0]), "{adapter}": str(adapter)}
    argv = shlex.split(options.engine_command)
    for place, value in values.items():
        argv = [word.replace(place, value) for word in argv]
    with _running(argv, port, {}, options.start_timeout_s):
        yield _engine(wanted, port, name=_NAME if adapter else "", is_processed=False)


def _engine(wanted: Wanted, port: int, *, name: str, is_processed: bool) -> UrlEngine:
    return UrlEngine(
        Endpoint(url=f"http://127.0.0.1:{port}", url_model=name),
        concurrency=wanted.batch_size,
        is_processed=is_processed,
        loaded=Loaded(digest=wanted.digest, proof="claimed"),
    )


def _adapter(wanted: Wanted) -> Path | None:
    if len(wanted.folders) > 2:
        raise ConfigError("--engine: servers take one adapter; merge the others first", USAGE)
    return wanted.folders[1] if len(wanted.folders) == 2 else None


def _rank(adapter: Path) -> int:
    """The least of vLLM's sizes that holds the adapter's largest rank. Raises ConfigError (2) for another method."""
    import json

    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"--engine vllm: {adapter} is {config.get('peft_type')}, not LoRA; merge it first", USAGE)
    rank = max([int(config.get("r") or 1), *map(int, (config.get("rank_pattern") or {}).values())])
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


@contextlib.contextmanager
def _running(argv: list[str], port: int, more: dict[str, str], timeout_s: float) -> Iterator[None]:
    with tempfile.TemporaryFile() as said:
        child = start_child(argv, said, more)
        try:
            _wait_ready(child, argv, port, said, timeout_s)
            yield
            if child.poll() is not None:
                raise _ended(child, argv, said)
        except StageError as error:
            if child.poll() is not None:
                raise _ended(child, argv, said) from error
            raise
        finally:
            end_child(child)


def _wait_ready(child: subprocess.Popen[bytes], argv: list[str], port: int, said: IO[bytes], timeout_s: float) -> None:
    started = time.monotonic()
    Progress.show(f"engine: {shlex.join(argv)}")
    while child.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10).close()
            return
        if time.monotonic() - started > timeout_s:
            raise StageError(
                f"{argv[0]}: no answer on port {port} after {timeout_s:g} s; see --start-timeout-s{tail_of(said)}",
                UNAVAILABLE,
            )
        time.sleep(0.1)
    raise _ended(child, argv, said)


def _ended(child: subprocess.Popen[bytes], argv: list[str], said: IO[bytes]) -> StageError:
    code = child.wait()
    how = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    return StageError(f"engine {shlex.join(argv[:4])} ...: {how}; mend its command line{tail_of(said)}", UNAVAILABLE)


def tail_of(said: IO[bytes]) -> str:
    """The end of what a process said, for an error."""
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _SHOWN_BYTES))
    text = said.read().decode(errors="replace").strip()
    return f". It said:\n{text}" if text else ", it said nothing"


def start_child(argv: list[str], said: IO[bytes], more: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process that ends with this one, in a group of its own.

    `said` gets what it writes; `more` is added to the few variables that it is given.
    """
    env = {k: v for k, v in os.environ.items() if k in _PASSED_ON or k.startswith(_PASSED_ON_PREFIXES)}
    return subprocess.Popen(
        [sys.executable, "-c", _UNTIL_PARENT_ENDS, *argv],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        env=more | env,
        start_new_session=True,
    )


def end_child(child: subprocess.Popen[Any]) -> None:
    """Everything that it started ends with it."""
    for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait_s)
