"""The flags that give a prompt, and the inputs of the model that it becomes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pygen.cli.parser import UsageError


def add_prompt(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompt")
    group.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text (default: standard input)")
    group.add_argument("--file", metavar="FILE", help="the file that holds the text; - is standard input")
    group.add_argument("--system", metavar="TEXT", help="the system message of a chat model")
    group.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without the model's chat template"
    )


def prompt_of(arguments: argparse.Namespace) -> str:
    """The text, without the line break at the end of a file. UsageError without a text, or with two."""
    if arguments.prompt is not None:
        if arguments.file is not None:
            raise UsageError("a prompt and --file exclude each other")
        return str(arguments.prompt)
    if arguments.file not in (None, "-"):
        return Path(arguments.file).read_text(encoding="utf-8").removesuffix("\n")
    if arguments.file is None and sys.stdin.isatty():
        raise UsageError("a prompt is missing: give a text, --file FILE, or standard input")
    return sys.stdin.read().removesuffix("\n")


def ids_of(tokenizer: Any, prompt: str | list[Any], arguments: argparse.Namespace) -> list[int]:
    """The token ids of a text, of the messages of a chat, or the ids themselves.

    A text is the user's message where the tokenizer has a chat template, unless --raw is given.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if arguments.system is not None and (arguments.raw or not has_template):
        reason = "--raw leaves it out" if arguments.raw else "this model has none"
        raise UsageError(f"argument --system: needs a chat template, and {reason}")
    if isinstance(prompt, str) and has_template and not arguments.raw:
        prompt = [{"role": "user", "content": prompt}]
        if arguments.system is not None:
            prompt.insert(0, {"role": "system", "content": arguments.system})
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not prompt or not all(isinstance(message, dict) for message in prompt):
        return prompt
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
