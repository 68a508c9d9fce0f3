"""Checks a generation_config.json as strictly as GenerationConfig.from_pretrained,
and shows every finding by key and value.

An error is a value that pygen refuses. A warning is a key that is no setting, or a
setting without effect.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pygen.cli.parser import FAILED
from pygen.config.config import GenerationConfig
from pygen.config.files import GENERATION_CONFIG_NAME, file_problems, parse_settings
from pygen.config.issues import minor_issues
from pygen.config.rules import EXTENSION_RULES, METADATA_RULES, RULES
from pygen.notices import collected
from pygen.rules import shown

_KNOWN = (*RULES, *METADATA_RULES, *EXTENSION_RULES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"], help="the only action")
    parser.add_argument("file", metavar="FILE", help=f"the file, or a folder that holds {GENERATION_CONFIG_NAME}")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")


def run(arguments: argparse.Namespace) -> int:
    path = arguments.file
    if os.path.isdir(path):
        path = os.path.join(path, GENERATION_CONFIG_NAME)
    settings = parse_settings(path)
    found = list(findings(settings))
    errors = sum(level == "error" for level, _ in found)
    print(f"{path}: {len(settings)} keys, {errors} errors, {len(found) - errors} warnings")
    for level, text in found:
        print(f"  {level:<9}{text}")
    return FAILED if errors or (arguments.strict and found) else 0


def findings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """("error" or "warning", text) for everything that is wrong with the settings of a file."""
    problems = list(file_problems(settings))
    if not problems:
        try:
            with collected():
                config = GenerationConfig(**settings)
        except (ValueError, TypeError) as error:
            problems = [str(error)]
        else:
            yield from (("warning", f"`{name}`: {text}") for name, text in minor_issues(config, set()).items())
    yield from (("error", problem) for problem in problems)
    for name, value in settings.items():
        if name not in _KNOWN and not any(f"`{name}`" in problem for problem in problems):
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            advice = f"; did you mean `{near[0]}`?" if near else ""
            yield "warning", f"`{name}`={shown(value)} is no setting of generation{advice}"
