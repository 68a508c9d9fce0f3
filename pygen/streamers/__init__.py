"""Streamers: they print or hand on text while it is generated."""

from __future__ import annotations

from pygen.streamers.text import AsyncTextIteratorStreamer, BaseStreamer, TextIteratorStreamer, TextStreamer

__all__ = ["AsyncTextIteratorStreamer", "BaseStreamer", "TextIteratorStreamer", "TextStreamer"]
