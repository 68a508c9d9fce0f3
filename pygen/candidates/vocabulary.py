"""Compares the vocabularies of a model and its assistant, and adapts ids and logits of different widths."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.models.widths import head_width

# Heads are padded to a multiple of some number up to 512, or of the number of devices.
_PADDING = 512


def check_same_tokens(model: object, assistant: object) -> None:
    """ValueError where widths or special tokens show that token ids mean different tokens in the two models.

    Two conditions make the tokens the same. The widths of the heads differ by less than 512, which is padding. And the
    ids that begin and end texts (`bos_token_id`, `eos_token_id`, in the configs of model and generation) have one in
    common, or one model has no such ids. The check passes for a head of unknown width. A wrong pass costs time and
    changes no token of the text.
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
    raise ValueError(f"`tokenizer` and `assistant_tokenizer` must be given for models with different tokens: {why}")


def readable(ids: Tensor, count: int | None) -> Tensor:
    """`ids`, where `count` - 1 replaces larger ids; None means no limit."""
    return ids if count is None else ids.clamp(max=count - 1)


def of_width(logits: Tensor, width: int) -> Tensor:
    """(rows, n) -> (rows, width): cuts the columns from `width` on, or appends columns of -inf."""
    missing = width - logits.shape[1]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[:, :width]


def _limits(model: object) -> set[int]:
    """The ids that begin and end texts."""
    config = getattr(model, "config", None)
    get_text_config = getattr(config, "get_text_config", None)
    text = None if get_text_config is None else get_text_config()
    ids: set[int] = set()
    for of in (config, text, getattr(model, "generation_config", None)):
        for value in (getattr(of, "bos_token_id", None), getattr(of, "eos_token_id", None)):
            ids |= {int(token_id) for token_id in ([value] if isinstance(value, int) else value or ())}
    return {token_id for token_id in ids if token_id >= 0}
