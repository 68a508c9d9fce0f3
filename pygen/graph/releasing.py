"""`release`: gives back what captured steps of a model hold."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pygen.models.wrappers import inner

# `pygen.graph.captures` enters its function here when it is first imported, which takes transformers.
_droppers: list[Callable[[nn.Module], None]] = []


def on_release(drop: Callable[[nn.Module], None]) -> None:
    """Makes `release` call drop(model)."""
    _droppers.append(drop)


def release(model: object) -> None:
    """Frees the graphs, caches and buffers that calls of `generate` with `runtime="graph"` left for the next ones.

    They are kept outside of the model, at most four sizes of a call, and go with the model too. A call that runs
    meanwhile ends as it would have, and the next captured call makes its own anew. Nothing happens where there is
    nothing to free.
    """
    if isinstance(model, nn.Module):
        for drop in _droppers:
            drop(inner(model))
