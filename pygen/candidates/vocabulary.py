"""Which tokens an assistant shares with the model whose text it goes on with, where their logits have other widths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygen.models.widths import head_width

# Heads are padded to a multiple of some number up to 512, or of the number of devices.
_PADDING = 512


def check_same_tokens(model: Any, assistant: Any) -> None:
    """ValueError where the models show that token ids have other meanings in each of them.

    Tokens count as the same where the heads' widths differ by less than 512, which is padding, and where the ids that
    begin and end texts (`bos_token_id`, `eos_token_id`, in the configs of model and generation) have one in common, or
    one model has none. A model without a head that says its width is not compared. What passes by mistake costs time
    and changes no token of the text.
    """
    width, other_width = head_width(model), head_width(assistant)
    if width is None or other_width is None or width == other_width:
        return
    ids, other_ids = _limits(model), _limits(assistant)
    why = f"got {width} and {other_width} tokens"
    if abs(width - other_width) >= _PADDING:
        why += f", a difference of {_PADDING} or more"
    elif ids and other_ids and not ids & other_ids:
        why += f", and {sorted(ids)} and {sorted(other_ids)} as `bos_token_id` and `eos_token_id`"
    else:
        return
    raise ValueError(f"`tokenizer` and `assistant_tokenizer` must be given where the models have other tokens: {why}")


def readable(ids: Tensor, count: int | None) -> Tensor:
    """`ids` with the last of `count` ids in place of those beyond; None is no limit."""
    return ids if count is None else ids.clamp(max=count - 1)


def of_width(logits: Tensor, width: int) -> Tensor:
    """(rows, n) -> (rows, width): without the columns beyond `width`, or with -inf in those behind n."""
    missing = width - logits.shape[1]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[:, :width]


def _limits(model: Any) -> set[int]:
    """The ids that begin and end texts."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    ids: set[int] = set()
    for of in (config, text, getattr(model, "generation_config", None)):
        for value in (getattr(of, "bos_token_id", None), getattr(of, "eos_token_id", None)):
            ids |= {int(token_id) for token_id in ([value] if isinstance(value, int) else value or ())}
    return {token_id for token_id in ids if token_id >= 0}
