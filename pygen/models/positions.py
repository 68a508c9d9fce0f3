"""The number of positions that a model has embeddings for, and how many of them a text leaves."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import Tensor, nn

from pygen.models.protocols import TransformersModel


@dataclass(frozen=True)
class Positions:
    """The positions of a decoder or encoder that looks them up in a table of fixed size.

    count: the size of the table.
    counts_padding: whether padding before or after a text also takes positions.
    """

    count: int
    counts_padding: bool

    def used(self, length: int, mask: Tensor | None) -> int:
        """The number of positions that the longest of the texts (rows, length) takes."""
        if mask is None or self.counts_padding:
            return length
        # A mask longer than the text includes a cache's positions. Beyond a shorter mask all positions count.
        visible = int((mask != 0).sum(-1).max())
        return visible + max(length - mask.shape[1], 0)


def _positions(model: nn.Module, module: nn.Module) -> Positions | None:
    """The positions of the decoder or encoder `module` of `model`.

    None where it computes them, as for rotary and relative ones, or can enlarge its table.
    """
    takes_positions = {"position_ids", "decoder_position_ids"} & inspect.signature(model.forward).parameters.keys()
    for path, part in module.named_modules():
        name = path.rpartition(".")[2]
        is_table = isinstance(part, nn.Embedding) and ("pos" in name or name == "wpe")
        if is_table and not hasattr(part, "make_weight") and "vision" not in path and "image" not in path:
            # The first entries of some families' tables are unused, or for padding.
            padded = part.padding_idx is not None
            offset = getattr(part, "offset", part.padding_idx + 1 if padded else 0)
            return Positions(part.num_embeddings - offset, not padded and not takes_positions)
    return None


def fit_positions(model: TransformersModel, max_new_tokens: int, length: int, mask: Tensor | None, *, name: str) -> int:
    """The number of new tokens, at most `max_new_tokens`, for which positions are left after texts (rows, length).

    The last token takes no position, since the model never reads it.

    name: the name of the texts in messages.
    Errors: ValueError for texts with more positions than the model has.
    """
    positions = _positions(model, model.get_decoder())
    if positions is None or length + max_new_tokens - 1 <= positions.count:
        return max_new_tokens
    used = positions.used(length, mask)
    if used > positions.count:
        raise ValueError(_too_long(model, name, used, positions))
    return min(max_new_tokens, positions.count - used + 1)


def check_encoder_positions(model: TransformersModel, length: int, mask: Tensor | None, *, name: str) -> None:
    """ValueError where texts (rows, length) are too long for the encoder of `model`."""
    positions = _positions(model, model.get_encoder())
    if positions is not None and positions.used(length, mask) > positions.count:
        raise ValueError(_too_long(model, name, positions.used(length, mask), positions))


def _too_long(model: nn.Module, name: str, used: int, positions: Positions) -> str:
    return f"`{name}` must have at most the {positions.count} positions of {type(model).__name__}, got {used}"
