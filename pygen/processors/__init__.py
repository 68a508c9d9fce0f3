"""Logits processors under the names and signatures of transformers, for any loop over (input_ids, scores)."""

from __future__ import annotations

from pygen.processors.base import LogitsProcessor, LogitsProcessorList

__all__ = ["LogitsProcessor", "LogitsProcessorList"]
