"""A streamer that someone else may write to but not end."""

from __future__ import annotations

from torch import Tensor

from pygen.request.protocols import Streamer


def borrowed(streamer: Streamer | None) -> Streamer | None:
    """`streamer` without the effect of `end` and `fail`; None stays None."""
    return None if streamer is None else _Borrowed(streamer)


class _Borrowed:
    def __init__(self, streamer: Streamer) -> None:
        self._streamer = streamer

    def __getattr__(self, name: str) -> object:
        return getattr(self._streamer, name)

    def put(self, value: Tensor) -> object:
        return self._streamer.put(value)

    def end(self) -> None: ...

    def fail(self, error: BaseException) -> None: ...
