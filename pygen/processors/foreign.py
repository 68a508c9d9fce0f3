"""Replaces transformers' processors that keep state per row by pygen's own, which follow rows that move."""

from __future__ import annotations

from typing import Any

import torch

from pygen.processors.guidance import UnbatchedClassifierFreeGuidanceLogitsProcessor
from pygen.processors.recognize import keeps_rows, known_class
from pygen.processors.watermark import SynthIDTextWatermarkLogitsProcessor


def own_form(name: str, processor: Any) -> Any:
    """`processor`, or pygen's own for one of transformers' that keep state per row.

    name: its name in errors. Raises ValueError for a guidance processor that served another call.
    """
    if not keeps_rows(processor):
        return processor
    if known_class(processor) == "SynthIDTextWatermarkLogitsProcessor":
        return _synthid(processor)
    context = processor.unconditional_context
    if not context["first_pass"]:
        raise ValueError(f"`{name}` has served another call: a {type(processor).__name__} serves one")
    return UnbatchedClassifierFreeGuidanceLogitsProcessor(
        processor.guidance_scale,
        processor.model,
        context["input_ids"],
        context["attention_mask"],
        use_cache=context["use_cache"],
    )


def _synthid(processor: Any) -> SynthIDTextWatermarkLogitsProcessor:
    table: torch.Tensor = processor.sampling_table
    own = SynthIDTextWatermarkLogitsProcessor(
        processor.ngram_len,
        processor.keys.tolist(),
        len(table),
        0,
        processor.context_history_size,
        processor.device,
        processor.skip_first_ngram_calls,
        processor.debug_mode,
    )
    # transformers keeps the table but not the seed that made it.
    own.sampling_table = table
    return own
