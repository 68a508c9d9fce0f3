"""A streamer for a part of a call: whoever gets it cannot end it."""

from __future__ import annotations

from typing import Any


def borrowed(streamer: Any) -> Any:
    """`streamer`, but that whoever gets it does not end it; None stays None."""
    return None if streamer is None else _Borrowed(streamer)


class _Borrowed:
    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streamer, name)

    def end(self) -> None: ...

    def fail(self, error: BaseException) -> None: ...
