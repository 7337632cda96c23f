"""`postmill again COMMAND ...`: run a command until it is done, for programs that know only success and failure."""

import signal
import sys
import time

from postmill.cli.child import run_child
from postmill.io.errors import STOPPED, UNAVAILABLE, ConfigError
from postmill.stages.shared.child_limits import end_with_parent

AGAIN = (STOPPED, UNAVAILABLE)
"""Exit codes after which the same command goes on."""
USAGE = """
Run a command of postmill, and run it again while its exit code asks for that.

usage: postmill again [--attempts N] [--pause SECONDS] [--with-parent] COMMAND ...

  postmill again train packed/ -m base/ -o run/

75 (stopped safely) is tried again at once, 69 (a service is not there) after a pause. Any other code is the end, and is
the exit code: data and options do not get better by waiting. A signal is passed on, and then nothing is tried again.

  --attempts N      how often at most (default: 20)
  --pause SECONDS   how long to wait for a service (default: 60)
  --with-parent     stop the command safely when the program that started this one ends: many do not pass a signal on
"""


def run(argv: list[str]) -> int:
    """Returns the last exit code."""
    attempts, pause, rest = 20, 60.0, list(argv)
    while rest and rest[0].startswith("-"):
        name, has_value, value = rest.pop(0).partition("=")
        if name in ("-h", "--help"):
            sys.stdout.write(USAGE.strip() + "\n")
            return 0
        if name == "--with-parent" and not has_value:
            end_with_parent(signal.SIGTERM)
            continue
        value = value if has_value else rest.pop(0) if rest else ""
        if name == "--attempts" and value.isdecimal() and int(value) >= 1:
            attempts = int(value)
        elif name == "--pause" and value.replace(".", "", 1).isdecimal():
            pause = float(value)
        else:
            raise ConfigError(
                f"again: {name} {value}: expected --attempts N, --pause SECONDS or --with-parent before the command"
            )
    if not rest:
        raise ConfigError("again: no command; see postmill again --help")
    code = STOPPED
    for attempt in range(attempts):
        ended = run_child(rest)
        code = ended.code if ended.code >= 0 else 128 - ended.code
        if ended.told or code not in AGAIN:
            break
        if code == UNAVAILABLE and attempt + 1 < attempts:
            time.sleep(pause)
    return code
