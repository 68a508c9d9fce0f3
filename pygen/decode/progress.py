"""The progress bar of a call."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Protocol


class ProgressBar(Protocol):
    def update(self, n: int) -> object: ...


def progress_bar(progress: bool, total: int) -> AbstractContextManager[ProgressBar | None]:
    """A context with a bar, or with None if progress is off."""
    if not progress:
        return contextlib.nullcontext()
    from tqdm.auto import tqdm

    bar: AbstractContextManager[ProgressBar] = tqdm(total=total, desc="generate", unit="token")
    return bar
