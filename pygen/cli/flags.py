"""One flag for every setting of `generate()`, made from the table of settings."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
from typing import Any

from pygen import knobs
from pygen.config.rules import BOOLEAN, DEFAULTS, EXTENSION_RULES, RULES
from pygen.config.types import normalised
from pygen.rules import Rule

# Their values are Python objects, which no text can give.
_OBJECTS = ("compile_config", "constraints", "continuous_batching_config")
SETTINGS: dict[str, Rule] = {name: rule for name, rule in {**RULES, **EXTENSION_RULES}.items() if name not in _OBJECTS}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds every setting. A value is JSON or plain text; a list of values gives one per row where the setting has that;
    null switches a setting off."""
    shaping = parser.add_argument_group(
        "settings that shape the scores", "A value is a number, or [a, b] with one per row. null switches off."
    )
    others = parser.add_argument_group(
        "other settings of generate()",
        "A value is JSON or plain text. null switches off. --no-do-sample sets do_sample to false.",
    )
    for name, rule in SETTINGS.items():
        knob = knobs.BY_NAME.get(name)
        group = others if knob is None else shaping
        words = rule.allowed if knob is None else f"{rule.allowed}: {knob.formula}"
        default = DEFAULTS.get(name) if knob is None else knob.default
        words += "" if default is None else f" (default {json.dumps(default)})"
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
        if rule is BOOLEAN:
            group.add_argument(flag(name), action="store_true", help=_escaped(words), **options)
            group.add_argument(flag(f"no_{name}"), action="store_false", help=argparse.SUPPRESS, **options)
        else:
            read = functools.partial(value_of, name)
            group.add_argument(flag(name), type=read, metavar="VALUE", help=_escaped(words), **options)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings on the command line, by name."""
    return {name: value for name, value in vars(arguments).items() if name in SETTINGS}


def value_of(name: str, text: str) -> Any:
    """The value that a text gives a setting: as JSON if the setting's rule allows that, else as plain text.

    A list or an object in JSON is never plain text: a mistake in one is an error.
    """
    readings: list[Any] = [text]
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        readings = [value] if isinstance(value, (list, dict)) else [value, text]
    problems: list[str] = []
    for reading in readings:
        try:
            value = normalised(name, reading)
        except ValueError as error:
            problems.append(str(error))
            continue
        problem = SETTINGS[name].problem(name, value)
        if problem is None:
            return value
        problems.append(problem)
    raise argparse.ArgumentTypeError(problems[0])


def _escaped(words: str) -> str:
    return words.replace("%", "%%")
