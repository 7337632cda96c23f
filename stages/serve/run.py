"""Serve: load what is to be served, listen, and leave in order."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from postmill.io.errors import FAILED, NO_INPUT, ArtifactError, ConfigError, StageError
from postmill.io.json_file import load_json
from postmill.stages.progress import Progress
from postmill.stages.protocol import Inputs, Out
from postmill.stages.serve.adapters import Adapters, Named
from postmill.stages.serve.config import Serve
from postmill.stages.serve.service import Defaults, Service
from postmill.stages.serve.worker import Worker
from postmill.stages.shared.agent_formats.table import FORMATS
from postmill.stages.shared.answer_tokens import answers_head
from postmill.stages.shared.engine.local import LocalEngine
from postmill.stages.shared.engine.pooled import PooledEngine
from postmill.stages.shared.engine.text import Speaker
from postmill.stages.shared.heads import Head, Pooling
from postmill.stages.shared.hf import need
from postmill.stages.shared.http import bind
from postmill.stages.shared.http import make_server as http_server
from postmill.stages.shared.saved_head import find_head
from postmill.stages.tables import closest


def run(cfg: Serve, inputs: Inputs, out: Out) -> None:
    """Answer until SIGTERM or SIGINT.

    Raises ConfigError (2) for keys or names that cannot be; ArtifactError (78) for an adapter that cannot be one of
    many; StageError: (69) where the address is taken, (1) if the engine fails.
    """
    need("starlette", "uvicorn", remedy="pip install 'postmill[serve]'")
    if cfg.tool_format not in ("auto", "off", *FORMATS):
        raise ConfigError(f"--tool-format {cfg.tool_format}: no such format{closest(cfg.tool_format, list(FORMATS))}")
    keys = read_keys(Path(cfg.key_file)) if cfg.key_file else {}
    admin_keys = read_keys(Path(cfg.admin_key_file)) if cfg.admin_key_file else {}
    if cfg.adapter_dir and not Path(cfg.adapter_dir).is_dir():
        raise ArtifactError(f"--adapter-dir {cfg.adapter_dir}: no such folder", NO_INPUT)
    listener = bind(cfg.host, cfg.port, "serve")
    with contextlib.closing(listener):
        service = load(cfg, inputs, threads=out.threads)
        asyncio.run(_serve(service, make_server(service, keys, admin_keys), listener))


def load(cfg: Serve, inputs: Inputs, *, threads: int) -> Service:
    """The engine with all adapters, and what stands before it."""
    served = inputs["served"][0]
    base = inputs["model"][0] if inputs["model"] else None
    folders = [item.path for item in (base, served) if item is not None and item.path is not None]
    head = find_served_head(cfg, folders)
    engine: LocalEngine | PooledEngine
    if head.kind != "lm":
        engine = PooledEngine(folders, head, dtype=cfg.dtype, threads=threads)
    else:
        engine = LocalEngine(
            folders,
            dtype=cfg.dtype,
            threads=threads,
            max_running=cfg.max_running,
            cache_tokens=cfg.cache_tokens or None,
        )
    name = cfg.name or served.name
    models = [Named(name=name, adapter=None, digest=served.digest)]
    for port, items in inputs.items():
        for item in items:
            label = item.port.partition(".")[2]
            if port != "adapter" or item.path is None:
                continue
            if label in {model.name for model in models}:
                raise ConfigError(f"--adapter {label}: the name is taken; choose another")
            engine.add_adapter(label, item.path)
            models.append(Named(name=label, adapter=label, digest=item.digest, parent=name))
    speaker = Speaker(folders)
    worker = Worker(engine)
    adapters = Adapters(engine, worker, models, base=base or served, folder=cfg.adapter_dir)
    return Service(cfg, engine.about, worker, speaker, adapters, read_defaults(folders), head)


def find_served_head(cfg: Serve, folders: list[Path]) -> Head:
    """What answers: the language model, or the head that was trained or asked for."""
    if cfg.answers:
        return answers_head(cfg.answers)
    head = find_head(folders[0], folders[1] if len(folders) > 1 else None)
    is_embedder = head.kind == "pool" or (folders[0] / "modules.json").is_file()  # of sentence-transformers
    if cfg.head == "auto" and not is_embedder:
        return head
    pooling: Pooling = "mean" if head.kind != "pool" else head.pooling
    return Head(kind="pool", pooling=pooling if cfg.pooling == "auto" else cfg.pooling)


def read_defaults(folders: list[Path]) -> Defaults:
    """Sampling that the model's `generation_config.json` names."""
    path = folders[0] / "generation_config.json"
    said: dict[str, Any] = load_json(path) if path.is_file() else {}
    names = Defaults.__struct_fields__
    defaults = {name: said[name] for name in names if isinstance(said.get(name), (int, float))}
    if said.get("do_sample") is False:
        defaults.pop("temperature", None)
    return msgspec.convert(defaults, Defaults)


def read_keys(path: Path) -> dict[str, str]:
    """Keys by name. Raises ArtifactError (66), ConfigError (2)."""
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", NO_INPUT)
    keys: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, has_name, key = text.partition(":")
        label = name.strip() if has_name else f"line{number}"
        secret = (key if has_name else text).strip()
        if len(secret) < 8 or label in keys:
            raise ConfigError(f"{path}:{number}: expected KEY or NAME:KEY, with 8 characters or more and a new name")
        keys[label] = secret
    if not keys:
        raise ConfigError(f"{path}: no keys in it")
    return keys


def make_server(service: Service, keys: dict[str, str], admin_keys: dict[str, str] | None = None) -> Any:
    """The HTTP server with the application."""
    from postmill.stages.serve.app import App

    return http_server(App(service, keys, admin_keys))


async def _serve(service: Service, server: Any, listener: socket.socket) -> None:
    service.worker.start()
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, service, stopping)
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"http://{shown}:{port}\n")
    sys.stdout.flush()
    Progress.show(f"serve: {', '.join(service.models)} at http://{shown}:{port}, pid {os.getpid()}")
    waits = [asyncio.ensure_future(event.wait()) for event in (stopping, service.worker.died)]
    await asyncio.wait({running, *waits}, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    has_failed = service.worker.died.is_set()
    if not has_failed:
        await drain(service)
    server.should_exit = True
    await running
    service.worker.stop()
    if has_failed:
        raise StageError("serve: the engine failed; see above", FAILED)


def _on_signal(service: Service, stopping: asyncio.Event) -> None:
    """The first signal drains, the second ends at once."""
    if service.is_draining:
        os._exit(130)
    service.is_draining = True
    stopping.set()


async def drain(service: Service) -> None:
    """Wait for running requests, as long as they may take."""
    service.is_draining = True
    count = service.worker.num_running
    Progress.show(f"serve: {count} requests to finish, {service.cfg.drain_s:g} s at most")
    end = asyncio.get_running_loop().time() + service.cfg.drain_s
    await asyncio.sleep(0.2)  # whoever connected just now is told, not cut off
    while service.worker.num_running and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.02)
