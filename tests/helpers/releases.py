"""The release of transformers that serves as the oracle."""

from __future__ import annotations

import re

from pygen.models.versions import release


def since(version: str) -> bool:
    """Returns whether the installed release is `version`, as "5.18", or later."""
    installed, wanted = (tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (release(), version))
    return installed >= wanted
