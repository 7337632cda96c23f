"""Manual pages out of the help of the commands: `make man`, then `man -l build/man/postmill-pack.1`."""

import contextlib
import io
import sys
from importlib.metadata import version
from pathlib import Path

from postmill.cli.main import TOOLS, dispatch
from postmill.stages.table import STAGES


def help_of(command: str) -> str:
    """What `postmill COMMAND --help all` prints, or of a tool `--help`."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        dispatch(command, ["--help", "all"] if command in STAGES else ["--help"])
    return said.getvalue().strip("\n")


def page(command: str) -> str:
    """One page: name, and the help as it is, since its layout is meant for a terminal."""
    about = (STAGES | TOOLS)[command]
    lines = help_of(command).splitlines()
    usage = [line.partition(":")[2].strip() for line in lines if line.startswith("usage:")]
    return (
        f'.TH POSTMILL-{_roff(command.upper())} 1 "" "postmill {version("postmill")}" "Postmill"\n'
        f".SH NAME\npostmill\\-{_roff(command)} \\- {_roff(about)}\n"
        f".SH SYNOPSIS\n.B {_roff(usage[0]) if usage else f'postmill {command}'}\n"
        ".SH DESCRIPTION\n.nf\n" + "".join(f"{_roff(line)}\n" for line in lines) + ".fi\n"
        ".SH EXIT STATUS\n0 done or up to date; 2 usage; 65 bad data; 66 no input; 75 stopped safely, run it again; "
        "78 artifacts that do not fit.\n.SH SEE ALSO\n"
        + ", ".join(f"postmill\\-{_roff(name)}(1)" for name in STAGES if name != command)
        + "\n"
    )


def _roff(text: str) -> str:
    """Text that roff prints as it is: no escapes, no commands, hyphens that can be copied."""
    shown = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{shown}" if shown.startswith((".", "'")) else shown


def write(folder: Path) -> list[Path]:
    """A page a command."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for command in STAGES | TOOLS:
        path = folder / f"postmill-{command}.1"
        path.write_text(page(command), encoding="utf-8")
        made.append(path)
    return made


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        sys.stdout.write(f"{written}\n")
