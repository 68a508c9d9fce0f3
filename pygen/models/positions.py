"""How many positions a model has embeddings for, and what a text leaves of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Positions:
    """The positions of a decoder or encoder that looks them up, in a table of fixed size.

    count: how many there are.
    counts_padding: whether padding before or behind a text takes positions, too.
    """

    count: int
    counts_padding: bool

    def used(self, length: int, mask: Tensor | None) -> int:
        """How many the longest of some texts (rows, length) takes."""
        if mask is None or self.counts_padding:
            return length
        # A mask that is longer than the text shows what a cache holds, a shorter one says nothing of the rest.
        visible = int((mask != 0).sum(-1).max())
        return visible + max(length - mask.shape[1], 0)


def _positions(model: Any, module: Any) -> Positions | None:
    """Those of the decoder or encoder `module` of `model`; None where it computes them, as rotary and relative ones
    are, or grows its table."""
    takes_positions = {"position_ids", "decoder_position_ids"} & inspect.signature(model.forward).parameters.keys()
    for path, part in module.named_modules():
        name = path.rpartition(".")[2]
        is_table = isinstance(part, nn.Embedding) and ("pos" in name or name == "wpe")
        if is_table and not hasattr(part, "make_weight") and "vision" not in path and "image" not in path:
            # Tables of some families begin with entries that no token gets, or that padding gets.
            padded = part.padding_idx is not None
            offset = getattr(part, "offset", part.padding_idx + 1 if padded else 0)
            return Positions(part.num_embeddings - offset, not padded and not takes_positions)
    return None


def room_for(model: Any, max_new_tokens: int, length: int, mask: Tensor | None, *, name: str) -> int:
    """How many of `max_new_tokens` have a position behind texts (rows, length). ValueError where these are too long.

    The last token takes no position, since it is never read. name: what the texts are called.
    """
    positions = _positions(model, model.get_decoder())
    if positions is None or length + max_new_tokens - 1 <= positions.count:
        return max_new_tokens
    used = positions.used(length, mask)
    if used > positions.count:
        raise ValueError(_too_long(model, name, used, positions))
    return min(max_new_tokens, positions.count - used + 1)


def check_encoder_positions(model: Any, length: int, mask: Tensor | None, *, name: str) -> None:
    """ValueError where texts (rows, length) are too long for the encoder of `model`."""
    positions = _positions(model, model.get_encoder())
    if positions is not None and positions.used(length, mask) > positions.count:
        raise ValueError(_too_long(model, name, positions.used(length, mask), positions))


def _too_long(model: Any, name: str, used: int, positions: Positions) -> str:
    return f"`{name}` must have at most the {positions.count} positions of {type(model).__name__}, got {used}"
