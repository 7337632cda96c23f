"""The command line: `postmill STAGE ...`, or `postmill-STAGE ...`. Nothing heavy is imported to say help."""

import gc
import importlib
import os
import sys

from postmill.io.errors import INTERNAL, IO_ERROR, USAGE, ArtifactError, ConfigError, StageError
from postmill.stages.table import STAGES

TOOLS = {
    "run": "a chain of stages from one recipe",
    "loop": "rounds of sampling, rewards and training",
    "status": "where a loop is",
    "lossdiff": "every policy loss on the same samples, with its gradient at each token",
    "evaldiff": "whether one eval is better than another, item by item",
    "judge": "a model behind a URL compares answers, or marks them",
    "overlap": "whether the items of a benchmark were trained on",
    "recipe": "recipes to start from, read from other tools, written for other programs",
    "again": "a command until it is done: for programs that know only success and failure",
    "get": "a model from Hugging Face or ModelScope",
    "push": "a model or an adapter to Hugging Face, with a card",
    "chat": "talk with a model",
    "show": "what is trained on, coloured by weight, at every stage",
    "ui": "a page in the browser: fill in, look, run, compare",
    "view": "an artifact or a run as one HTML page",
    "verify": "check an artifact against its manifest",
    "inspect": "what an artifact is",
    "lineage": "every ancestor of an artifact",
    "plot": "curves of runs, in the terminal or as a picture",
    "track": "what a run measures, to TensorBoard, W&B, trackio, MLflow, SwanLab or Aim",
    "diff": "the first stage and option in which two artifacts differ",
    "ledger": "what became of a row",
    "schema": "JSON Schema of a stage's options",
    "estimate": "memory, disk and time of a run of train, before it is started",
    "launch": "several processes of a stage on this machine",
    "doctor": "what this machine and installation can do",
    "completion": "shell completion",
}
"""Tool -> what it does. Each is a module of cli/ with a `run(argv) -> int`."""


def _overview() -> str:
    lines = [
        "Post-training for language models, milled in stages.",
        "",
        "usage: postmill COMMAND ...   (COMMAND --help)",
        "",
    ]
    for title, commands in (("stages", STAGES), ("tools", TOOLS)):
        lines.append(f"{title}:")
        lines += [f"  {name:<12}{text}" for name, text in commands.items()]
        lines.append("")
    return "\n".join(lines)


def dispatch(command: str, argv: list[str]) -> int:
    """Run one command. Raises what it raises."""
    if command in STAGES and ("--help" in argv or "-h" in argv):
        from postmill.cli.declaration import read_declaration
        from postmill.cli.help import stage_help

        at = argv.index("--help") if "--help" in argv else argv.index("-h")
        everything = argv[at + 1 : at + 2] == ["all"]
        sys.stdout.write(stage_help(read_declaration(command, argv), everything=everything))
        return 0
    if command in STAGES:
        from postmill.cli.stage_command import run

        return run(importlib.import_module(f"postmill.stages.{command}.config").STAGE, argv)
    if command in TOOLS:
        tool = importlib.import_module(f"postmill.cli.{command}")
        gc.enable()
        code: int = tool.run(argv)
        return code
    return _of_a_package(command, argv)


def _of_a_package(command: str, argv: list[str]) -> int:
    """Run a stage that an installed package adds. Raises ConfigError (2) if there is none of that name."""
    from postmill.cli.stage_command import run
    from postmill.stages.tables import added, closest

    reference = added("postmill.stages").get(command)
    if reference is None:
        raise ConfigError(f"{command}: no such command{closest(command, [*STAGES, *TOOLS])}; see postmill --help")
    module, _, attribute = reference.partition(":")
    stage = getattr(importlib.import_module(module), attribute)
    if "--help" in argv or "-h" in argv:
        from postmill.cli.declaration import Declaration, read_module
        from postmill.cli.help import stage_help

        sys.stdout.write(stage_help(Declaration(read_module(module))))
        return 0
    return run(stage, argv)


def main() -> None:
    """Entry point of every console script; leaves through the exit code."""
    gc.disable()  # while modules load nothing is garbage, and looking for it took an eighth of a start
    program = sys.argv[0].rpartition(os.sep)[2]
    argv = sys.argv[1:]
    if program.startswith("postmill-"):
        argv = [program.removeprefix("postmill-"), *argv]
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        sys.exit(0 if argv else USAGE)
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        sys.stdout.write(f"postmill {version('postmill')}\n")
        sys.exit(0)
    sys.exit(_guarded(argv[0], argv[1:]))


def _guarded(command: str, argv: list[str]) -> int:
    """The program's edge: every error becomes one line and an exit code."""
    debug = "--debug" in argv
    try:
        code = dispatch(command, argv)
        sys.stdout.flush()
        return code
    except (ConfigError, ArtifactError, StageError) as error:
        if debug:
            raise
        hint = f"\nhint: {error.hint}" if error.hint else ""
        lines = str(error).split("\n")
        sys.stderr.write("".join(f"postmill {command}: error: {line}\n" for line in lines) + hint.removeprefix("\n"))
        return error.code
    except BrokenPipeError:
        # whoever read us has seen enough; keep the interpreter from complaining while it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        if debug:
            raise
        sys.stderr.write(f"postmill {command}: error: {error.filename or 'i/o'}: {error.strerror or error}\n")
        return IO_ERROR
    except BaseException as error:
        if type(error).__name__ == "Interrupted":  # its module is heavy, and this one must not import it
            return int(getattr(error, "code", INTERNAL))
        if isinstance(error, (SystemExit, KeyboardInterrupt)) or debug:
            raise
        return _bug(command, error)


def _bug(command: str, error: BaseException) -> int:
    """A fault of ours: the traceback goes to a file, its path to stderr."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="postmill-", suffix=".txt", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    what = str(error).split("\n", maxsplit=1)[0]
    sys.stderr.write(
        f"postmill {command}: error: {type(error).__name__}: {what}; this is a bug of ours, traceback in {file.name}\n"
    )
    return INTERNAL


if __name__ == "__main__":
    main()
