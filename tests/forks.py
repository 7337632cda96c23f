"""Training runs in forked children: real processes and signals, and no import to wait for."""

import faulthandler
import os
import signal
import time

from postmill.io.errors import ArtifactError, ConfigError, StageError
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.ports import free_port
from postmill.stages.train.config import STAGE

HANGS_S = 240
"""A child that takes so long hangs; a little earlier it says where it is."""


def fork_run(cfg, ports, target, env=None):
    """Start a run in a child; returns its pid. The child leaves with the run's exit code."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    faulthandler.dump_traceback_later(HANGS_S - 10, file=2)
    try:
        os.environ.update(env or {})
        if env:
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(True)
        run_stage(STAGE, cfg, ports, target, Options(threads=1))
        code = 0
    except (ArtifactError, StageError, ConfigError) as error:
        print(error, flush=True)
        code = error.code
    except BaseException as error:
        print(repr(error), flush=True)
    finally:
        os._exit(code)


def fork_ranks(cfgs, ports, target):
    """Start a rank for each config, as a launcher would; returns their pids."""
    # Free: a rank that cannot listen leaves the others waiting.
    common = {"WORLD_SIZE": str(len(cfgs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        fork_run(cfg, ports, target, common | {"RANK": str(r), "LOCAL_RANK": str(r), "ACCELERATE_USE_CPU": "true"})
        for r, cfg in enumerate(cfgs)
    ]


def wait_code(pid, limit_s=HANGS_S):
    """Exit code of a child, -signal if it was killed."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the child hangs")
