"""Warnings of a call: each message once per call, and none below the verbosity that transformers is set to."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PACKAGE = os.path.dirname(__file__) + os.sep

_said: ContextVar[set[str] | None] = ContextVar("pygen_said", default=None)
_collected: ContextVar[list[str] | None] = ContextVar("pygen_collected", default=None)


@contextmanager
def one_call(said: set[str] | None = None) -> Iterator[None]:
    """Gives every message once within the block, nested calls included.

    said: messages of earlier blocks of the same call, to which the block adds its own.
    """
    if _said.get() is not None:
        yield
        return
    token = _said.set(set() if said is None else said)
    try:
        yield
    finally:
        _said.reset(token)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collects the messages in the list, each once, instead of giving them."""
    messages: list[str] = []
    token = _collected.set(messages)
    try:
        yield messages
    finally:
        _collected.reset(token)


def log(logger: logging.Logger, message: str, level: int = logging.WARNING, *, about: str | None = None) -> None:
    """Logs a fact that needs no change in the caller's code.

    about: identifies the message where its words differ from step to step.
    """
    if _is_due(message, level, about):
        logger.log(level, message)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns of something the caller should know or change, at the caller's line."""
    if _is_due(message, logging.WARNING):
        warnings.warn(message, category, stacklevel=_frames_of_pygen())


def _is_due(message: str, level: int, about: str | None = None) -> bool:
    collected = _collected.get()
    if collected is not None:
        if message not in collected:
            collected.append(message)
        return False
    if level < _level_of_transformers():
        return False
    said = _said.get()
    if said is None:
        return True
    is_new = (about or message) not in said
    said.add(about or message)
    return is_new


def _level_of_transformers() -> int:
    """Its logging level where that hides warnings; 0 where it shows them, or where transformers is not loaded."""
    loaded = sys.modules.get("transformers.utils.logging")
    level = 0 if loaded is None else int(loaded.get_verbosity())
    return level if level > logging.WARNING else 0


def _frames_of_pygen() -> int:
    """The `stacklevel` with which `warn` names the first frame outside pygen."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
