"""`postmill ui`: a page in the browser that fills in recipes, shows masks, and runs what a command would run."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from pathlib import Path

from postmill.cli.tool import need, parse
from postmill.io.errors import NO_INPUT, ArtifactError, ConfigError
from postmill.io.hub import go_offline

USAGE = """
Open a page in the browser: choose data and model, see what is trained on, fill in a recipe, run it, watch it, talk.

usage: postmill ui [FOLDER] [--allow-run] [--port N]

  postmill ui work/ --allow-run

FOLDER (default: here) is all that the page sees: data, models, recipes and outputs below it. The page shows the command
for everything that it does. The address that is printed holds a token; it is good until the program ends.

  --allow-run   let the page start, stop and resume runs, and load models to talk to. Without it nothing is run.
                Whoever has the address can then run what a recipe can run, which includes code of yours
  --port N      port to listen at, on this machine only (default: a free one)

Runs go on when the page or this program ends. From another machine: ssh -L PORT:127.0.0.1:PORT.
"""


def run(argv: list[str]) -> int:
    """Serve the page until SIGTERM or Ctrl-C."""
    args = parse(argv, USAGE, switches=("--allow-run",), valued=("--port",))
    if args is None:
        return 0
    need(args, 0, 1, USAGE)
    port = args.options.get("--port", "0")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--port {port}: expected a number from 0 to 65535")
    root = Path(args.words[0] if args.words else ".")
    if not root.is_dir():
        raise ArtifactError(f"{root}: no such folder", NO_INPUT)
    from postmill.stages.shared.hf import need as need_package
    from postmill.stages.shared.http import bind

    need_package("starlette", "uvicorn", remedy="pip install 'postmill[ui]'")
    # paths of requests, recipes and commands all mean the same: what lies in the folder
    os.chdir(root)
    # the page asks no hub; a run that it starts may
    env = dict(os.environ)
    go_offline()
    with contextlib.closing(bind("127.0.0.1", int(port), "ui")) as listener:
        return asyncio.run(_serve(listener.getsockname()[1], listener, env, allow_run=args.has("--allow-run")))


async def _serve(port: int, listener: socket.socket, env: dict[str, str], *, allow_run: bool) -> int:
    from postmill.cli.page.app import App
    from postmill.cli.page.guard import Guard
    from postmill.cli.page.places import Folder
    from postmill.stages.shared.http import make_server

    token = secrets.token_urlsafe(32)
    app = App(Folder(Path()), Guard(port, token), allow_run=allow_run, env=env)
    server = make_server(app)

    def leave() -> None:
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    sys.stdout.write(f"http://127.0.0.1:{port}/#{token}\n")
    sys.stdout.flush()
    may = "runs are allowed" if allow_run else "nothing is run; pass --allow-run to allow it"
    sys.stderr.write(f"ui: {Path.cwd()}; {may}; Ctrl-C ends it\n")
    await running
    await asyncio.to_thread(app.talks.close)
    return 0
