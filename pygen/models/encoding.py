"""Pads the output of an encoder for a captured step, which reads a fixed number of positions."""

from __future__ import annotations

from typing import Any, Protocol

from torch.nn.functional import pad

from pygen.backends import BackendError


class StaticCache(Protocol):
    """A static cache for captured steps, `pygen.graph.static_cache.StaticCache`.

    encoder_length: the number of positions in the running call that aren't padding.
    encoder_positions: the number of positions that the captured step reads; None means those of the first call.
    """

    encoder_length: int

    def reset(self) -> object: ...

    @property
    def encoder_positions(self) -> int | None: ...


def fit_encoding(model_kwargs: dict[str, Any], cache: StaticCache) -> None:
    """Pads the encoder's output, up to the positions of `cache`, with zeros that its mask hides.

    Errors: BackendError for a mask of another shape than the output.
    """
    encoded, mask = model_kwargs["encoder_outputs"], model_kwargs.get("attention_mask")
    states = encoded.last_hidden_state
    cache.encoder_length = states.shape[1]
    if cache.encoder_positions is None:
        return
    if mask is None:
        mask = states.new_ones(states.shape[:2], dtype=int)
    if mask.shape != states.shape[:2]:
        raise BackendError(
            f"a captured step cannot run here: the encoder's output has shape {tuple(states.shape)}, "
            f"`attention_mask` {tuple(mask.shape)}"
        )
    missing = cache.encoder_positions - states.shape[1]
    model_kwargs["attention_mask"] = pad(mask, (0, missing))
    padded = {**encoded, "last_hidden_state": pad(states, (0, 0, 0, missing))}
    model_kwargs["encoder_outputs"] = type(encoded)(**padded)
