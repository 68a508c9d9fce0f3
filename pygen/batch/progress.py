"""The progress of a batch: prompts, and tokens per second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any


class BatchProgress:
    """Counts prompts and tokens; shows them on `bar` if there is one."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar
        self._tokens, self._began = 0, time.monotonic()

    def add_tokens(self, count: int) -> None:
        self._tokens += count
        if self._bar is not None:
            seconds = max(time.monotonic() - self._began, 1e-6)
            self._bar.set_postfix_str(f"{self._tokens / seconds:.1f} token/s", refresh=False)
            self._bar.update(0)

    def add_prompt(self) -> None:
        if self._bar is not None:
            self._bar.update(1)


@contextlib.contextmanager
def batch_progress(progress: bool) -> Iterator[BatchProgress]:
    if not progress:
        yield BatchProgress()
        return
    from tqdm.auto import tqdm

    with tqdm(desc="generate_batch", unit="prompt") as bar:
        yield BatchProgress(bar)
