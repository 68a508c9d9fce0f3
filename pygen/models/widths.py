"""How many token ids a model reads, and how many it writes."""

from __future__ import annotations

from typing import Any

from torch import nn


def head_width(model: Any) -> int | None:
    """How many tokens the model's head writes, None where it does not say. The logits themselves may be other."""
    try:
        width = getattr(model.get_output_embeddings(), "out_features", None)
    except (AttributeError, NotImplementedError):
        return None
    return width if isinstance(width, int) else None


def embedded_ids(model: Any) -> int | None:
    """How many ids the model reads, None where it does not say."""
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(embeddings, nn.Embedding):
        return None
    # Idefics keeps the ids of images in a second table behind the first.
    return embeddings.num_embeddings + int(getattr(embeddings, "num_additional_embeddings", 0))
