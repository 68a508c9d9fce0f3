"""Turns the docstrings into the Markdown that the site renders.

They are written to be read in an editor: entries `name: what it is` line by line, `::` before formulas, comparisons at
the start of a line. Markdown would run the first together, show the second, and quote the third.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ENTRY = re.compile(r"([a-z_]\w*(?:\([^)]*\)(?: -> [\w ]+)?)?(?:, [a-z_]\w*)*): (?=\S)")
_SECTIONS = ("Arguments:", "Returns:", "Raises:")


class Markdown(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    text = re.sub(r"^((?: {4})*(?:[\w, .]+: )?)(?=[<>])", r"\1\\", text, flags=re.MULTILINE)
    return "\n\n".join(map(_listed, text.split("\n\n")))


def _listed(paragraph: str) -> str:
    """A paragraph that begins with entries, with these and their indented continuations as a list. A line with a colon
    may head it, and prose may follow."""
    head, *below = lines = paragraph.split("\n")
    if head in _SECTIONS:
        return paragraph
    if head.endswith(":") and below and all(line.startswith("    ") for line in below):
        entries = [line[4:] for line in below]
        return "\n".join([head, "", *map(_item, entries)]) if any(map(_ENTRY.match, entries)) else paragraph
    if not _ENTRY.match(head):
        return paragraph
    count = next((n for n, line in enumerate(lines) if not _ENTRY.match(line) and not line.startswith(" ")), len(lines))
    return "\n".join([*map(_item, lines[:count]), "", *lines[count:]])


def _item(line: str) -> str:
    return f"  {line.strip()}" if line.startswith(" ") else "- " + _ENTRY.sub(r"`\1`: ", line, count=1)
