"""Writes config files."""

from __future__ import annotations

from pathlib import Path

NAME = "generation_config.json"


def write(folder: Path, text: str) -> str:
    (folder / NAME).write_text(text, encoding="utf-8")
    return str(folder / NAME)
