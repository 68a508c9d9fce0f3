"""Finds the command, runs it, and turns whatever goes wrong into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from pygen.cli.parser import FAILED, INTERRUPTED, NO_READER, USAGE, Parser, UsageError, one_line

COMMANDS = {
    "generate": "continue a prompt, or a file of prompts",
    "explain": "show what a call would do, without running the model",
    "doctor": "show versions, backends and choices on this machine, and test every op",
    "bench": "measure the ops against plain torch on this machine",
    "config": "check a generation_config.json, key by key",
}
_COMMANDS = "commands:\n" + "".join(f"  {name:<12}{words}\n" for name, words in COMMANDS.items())
_EPILOG = f"""\
{_COMMANDS}
`pygen COMMAND --help` shows the arguments of a command.

exit codes:
  0           success
  1           the command failed, or what it checked is wrong
  2           wrong arguments
  130         interrupted (Ctrl-C)
  141         the reader of the output is gone
"""


def main(words: Sequence[str], *, version: str) -> int:
    """Runs the command line `words`, without the program's name, and returns the exit code.

    SystemExit for --help, --version and arguments that the parser refuses. With --debug errors are raised.
    """
    command = words[0] if words else ""
    if command not in COMMANDS:
        _explain_commands(words, version)
    arguments, program = None, f"pygen {command}"
    try:
        module = importlib.import_module(f"pygen.cli.{command}")
        texts = {name: getattr(module, name.upper(), None) for name in ("usage", "epilog")}
        parser = Parser(prog=program, description=module.__doc__, **texts)
        parser.set_defaults(version=version)
        module.add_arguments(parser)
        arguments = parser.parse(words[1:])
        with _short_warnings():
            code = int(module.run(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except Exception as error:
        if arguments is not None and arguments.debug:
            raise
        print(f"{program}: {one_line(error)}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED


def _explain_commands(words: Sequence[str], version: str) -> None:
    """Ends the process with help, the version, or an error that names the commands."""
    parser = Parser(
        prog="pygen", usage="pygen COMMAND [ARGUMENTS]", description="Text generation with pygen.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"pygen {version}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    parser.parse(words)


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Prints a warning as one line, without the place in the code that gave it."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: print(f"pygen: {one_line(message)}", file=sys.stderr)
        yield
