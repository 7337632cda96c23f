"""Servers that answer for one run: started on a port of this machine only, asked by URL, ended with the run.

A server hears of the end of the process that started it, however that ends (Linux's parent-death signal). What it says
goes to a file of its own, whose end is shown if it fails.
"""

import contextlib
import os
import secrets
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

import msgspec

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


class Child:
    """A server that runs, and `engine`, which asks it. It is ended by `close`, or with this process."""

    def __init__(
        self,
        argv: list[str],
        port: int,
        wanted: Wanted,
        *,
        timeout_s: float,
        key: IO[str] | None = None,
        more: dict[str, str] | None = None,
        is_processed: bool = False,
    ) -> None:
        """Wait until it answers. Raises StageError (69) if it does not.

        key: a file with the key that it asks for, closed with it; more: variables it is given; is_processed:
        log-probs of vLLM's form are of what was drawn from.
        """
        self._argv, self._port, self._is_processed, self._key = argv, port, is_processed, key
        self._endpoint = Endpoint(url=f"http://127.0.0.1:{port}", key_file=key.name if key else "")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  it is open as long as the server
        self._number = 0
        self._process = start_child(argv, self._said, more or {})
        try:
            self._wait_ready(timeout_s)
            self.engine = self._engine(wanted, _NAME if _adapter(wanted) else "")
        except BaseException:
            self.close()
            raise

    def swap(self, wanted: Wanted) -> bool:
        """Put the adapter that is wanted in the place of the one before, by vLLM's routes; False where it cannot."""
        adapter, name = _adapter(wanted), f"{_NAME}.{self._number + 1}"
        before = self.engine
        if adapter is None or not before.name.startswith(_NAME) or self._process.poll() is not None:
            return False
        if not before.tell("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter.resolve())}):
            return False
        self._number += 1
        self.engine = self._engine(wanted, name)
        before.tell("/v1/unload_lora_adapter", {"lora_name": before.name})
        return True

    def check(self) -> None:
        """Raise StageError (69), with its last words, if the server has ended."""
        if self._process.poll() is not None:
            raise self._ended()

    def close(self) -> None:
        """End the server and all it started."""
        end_child(self._process)
        self._said.close()
        if self._key is not None:
            self._key.close()

    def _engine(self, wanted: Wanted, name: str) -> UrlEngine:
        return UrlEngine(
            msgspec.structs.replace(self._endpoint, url_model=name),
            concurrency=wanted.batch_size,
            is_processed=self._is_processed,
            loaded=Loaded(digest=wanted.digest, proof="claimed"),
        )

    def _wait_ready(self, timeout_s: float) -> None:
        started = time.monotonic()
        Progress.show(f"engine: {shlex.join(self._argv)}")
        while self._process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/v1/models", timeout=10).close()
                return
            if time.monotonic() - started > timeout_s:
                raise StageError(
                    f"{self._argv[0]}: no answer on port {self._port} after {timeout_s:g} s; see --start-timeout-s"
                    f"{tail_of(self._said)}",
                    UNAVAILABLE,
                )
            time.sleep(0.1)
        raise self._ended()

    def _ended(self) -> StageError:
        code = self._process.wait()
        how = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        return StageError(
            f"engine {shlex.join(self._argv[:4])} ...: {how}; mend its command line{tail_of(self._said)}", UNAVAILABLE
        )


@contextlib.contextmanager
def running(child: Child, *, keep: bool = False) -> Iterator[UrlEngine]:
    """Its engine. The server ends with the block, or if it is to be kept, with a block that fails.

    Raises StageError (69), with its last words, if it ended before.
    """
    is_good = False
    try:
        yield child.engine
        child.check()
        is_good = True
    except StageError as error:
        try:
            child.check()
        except StageError as ended:
            raise ended from error
        raise
    finally:
        if not (is_good and keep):
            child.close()


def start_vllm(options: Vllm, wanted: Wanted) -> Child:
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
        # a prompt that is read in two parts takes back a seed's draw, which vLLM's generator on CPUs cannot
        argv += ["--enforce-eager", "--no-enable-chunked-prefill"]
    argv += options.engine_arguments
    more = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    if not on_gpu:
        # compiling for the first log-prob takes half a minute; by default the cache takes most of the memory
        more |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": str(wanted.threads)}
        more |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{wanted.threads - 1}" if wanted.threads > 1 else "0"}
    return Child(argv, port, wanted, timeout_s=options.start_timeout_s, more=more, is_processed=True)


def start_command(options: Command, wanted: Wanted) -> Child:
    """Whatever the command line starts. Raises StageError (69), ConfigError (2)."""
    port, adapter = free_port(), _adapter(wanted)
    if adapter is not None and "{adapter}" not in options.engine_command:
        raise ConfigError("--engine-command: there is an adapter, and no {adapter} to put it; merge it first", USAGE)
    values = {"{port}": str(port), "{model}": str(wanted.folders[0])}
    values |= {"{adapter}": str(adapter)} if adapter is not None else {}
    key = None
    if "{key_file}" in options.engine_command:
        key = tempfile.NamedTemporaryFile("w", prefix="postmill-key-")  # noqa: SIM115  it is there as long as the server
        key.write(secrets.token_urlsafe(32))
        key.flush()
        values["{key_file}"] = key.name
    argv = words_of(options.engine_command, values)
    return Child(argv, port, wanted, timeout_s=options.start_timeout_s, key=key)


def words_of(command: str, values: dict[str, str]) -> list[str]:
    """A command line with values in their places. Where there is no adapter, its word and the option before it go."""
    words: list[str] = []
    for given in shlex.split(command):
        if "{adapter}" in given and "{adapter}" not in values:
            if words and words[-1].startswith("-"):
                words.pop()
            continue
        word = given
        for place, value in values.items():
            word = word.replace(place, value)
        words.append(word)
    return words


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
