"""Streamers: they print text, or pass it on, while `generate` produces it."""

from __future__ import annotations

from pygen.streamers.text import AsyncTextIteratorStreamer, BaseStreamer, TextIteratorStreamer, TextStreamer

__all__ = ["AsyncTextIteratorStreamer", "BaseStreamer", "TextIteratorStreamer", "TextStreamer"]
