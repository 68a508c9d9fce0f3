"""The number of token ids that a model embeds, and the number of tokens that its head scores."""

from __future__ import annotations

from torch import nn


def head_width(model: object) -> int | None:
    """The number of tokens that the model's head scores; None where it is unknown. Logits may have another width."""
    width = getattr(_part(model, "get_output_embeddings"), "out_features", None)
    return width if isinstance(width, int) else None


def embedded_ids(model: object) -> int | None:
    """The number of ids that the model embeds; None where it is unknown."""
    embeddings = _part(model, "get_input_embeddings")
    if not isinstance(embeddings, nn.Embedding):
        return None
    # Idefics has a second table for the ids of images, after the first.
    return embeddings.num_embeddings + int(getattr(embeddings, "num_additional_embeddings", 0))


def _part(model: object, getter: str) -> object:
    """The result of a method without arguments; None where the model does not have it or cannot answer."""
    try:
        part: object = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return part
