"""Which release of transformers is the oracle."""

from __future__ import annotations

import re

from pygen.models.versions import release


def since(version: str) -> bool:
    """Whether the installed release is `version`, as "5.18", or a later one."""
    installed, wanted = (tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (release(), version))
    return installed >= wanted
