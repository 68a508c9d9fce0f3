"""The parser of every command: errors are one line, and a misspelt flag gets a suggestion."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

FAILED, USAGE, INTERRUPTED, NO_READER = 1, 2, 130, 141


class UsageError(Exception):
    """Arguments that fit no call."""


_EXPECTED = (ValueError, TypeError, OSError, ImportError, RuntimeError, Warning, UsageError)


class Parser(argparse.ArgumentParser):
    """Every command has --debug. No flag may be abbreviated, so that a new one changes no old command line."""

    def __init__(self, **arguments: Any) -> None:
        arguments.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **arguments)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command line; SystemExit for help and for words that the command does not take."""
        arguments, unknown = self.parse_known_args(words)
        if unknown:
            flag = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"unknown argument {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return arguments


def one_line(message: object) -> str:
    """A message without line breaks. An error of a kind that no command expects starts with its class."""
    text = " ".join(str(message).split())
    if isinstance(message, Exception) and not isinstance(message, _EXPECTED):
        return f"{type(message).__name__}: {text} (--debug shows where)"
    return text or type(message).__name__
