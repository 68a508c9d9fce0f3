"""Shows what `pygen generate` would do with the same arguments: every setting with
its source, the stages of a step, the backends.

The model is loaded and does not run.
"""

from __future__ import annotations

import argparse

from pygen.cli.call import add_call, prepare
from pygen.cli.prompt import prompt_of
from pygen.explain import explain

USAGE = "pygen explain [PROMPT] [--model NAME] [--SETTING VALUE ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_call(parser)


def run(arguments: argparse.Namespace) -> int:
    text = prompt_of(arguments)
    loaded = prepare(arguments)
    print(explain(loaded.model, **loaded.call(text)))
    return 0
