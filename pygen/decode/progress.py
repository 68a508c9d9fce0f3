"""The progress bar of a call."""

from __future__ import annotations

import contextlib
from typing import Any


def progress_bar(progress: bool, total: int) -> Any:
    """A context with a bar to `update`, or with None where nobody asked for one."""
    if not progress:
        return contextlib.nullcontext()
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="generate", unit="token")
