"""Model inputs that the adapters share: growing masks and positions, and the last position's logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LOGITS_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def mask_from_padding(input_ids: Tensor, pad_token_id: int | None, eos_token_ids: list[int] | None) -> Tensor:
    """The mask where none is given, (batch_size, length) int64.

    Pad tokens are hidden, unless they may also end a text, since they cannot be told from a meant one then.
    """
    if pad_token_id is None or (eos_token_ids is not None and pad_token_id in eos_token_ids):
        return torch.ones_like(input_ids)
    return (input_ids != pad_token_id).long()


def position_ids_from_mask(attention_mask: Tensor) -> Tensor:
    """Positions counted over visible tokens only; masked places get 0. (batch_size, length) int64."""
    return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)


class GrowingInputs:
    """Inputs whose last dimension grows by one a token, written once for the whole call and then only sliced.

    What generated positions hold: attention_mask 1, position_ids one more than the place before, token_type_ids the
    prompt's last value, mm_token_type_ids 0 (text).
    """

    NAMES = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")

    def __init__(self, model_kwargs: dict[str, Any], max_new_tokens: int) -> None:
        """Takes the growing inputs out of `model_kwargs`."""
        self._buffers: list[tuple[str, Tensor, int]] = []
        for name in self.NAMES:
            value = model_kwargs.get(name)
            if isinstance(value, Tensor):
                del model_kwargs[name]
                buffer = torch.cat([value, self._tail(name, value, max_new_tokens)], dim=-1)
                self._buffers.append((name, buffer, value.shape[-1]))

    @staticmethod
    def _tail(name: str, value: Tensor, count: int) -> Tensor:
        shape = (*value.shape[:-1], count)
        if name == "attention_mask":
            return value.new_ones(shape)
        if name == "mm_token_type_ids":
            return value.new_zeros(shape)
        if name == "position_ids":
            return value[..., -1:] + torch.arange(1, count + 1, dtype=value.dtype, device=value.device)
        return value[..., -1:].expand(shape)

    def after(self, generated: int) -> dict[str, Tensor]:
        """Views that cover the prompt and the first `generated` tokens."""
        return {name: buffer[..., : length + generated] for name, buffer, length in self._buffers}

    def expand(self, num_copies: int, batch_size: int) -> None:
        """Repeats every row, copies side by side."""
        self._buffers = [
            (name, repeat_rows(buffer, num_copies, batch_size), length) for name, buffer, length in self._buffers
        ]


def repeat_rows(value: Any, num_copies: int, batch_size: int) -> Any:
    """Repeats every row of a tensor, or of the tensors in nested tuples; leaves anything without a batch dimension."""
    if isinstance(value, tuple):
        return tuple(repeat_rows(item, num_copies, batch_size) for item in value)
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch_size:
        return value.repeat_interleave(num_copies, dim=0)
    return value


def last_logits(value: Any, rows: int, device: torch.device) -> Tensor:
    """(rows, length, vocab_size) or (rows, vocab_size) -> (rows, vocab_size) in a dtype the ops read, on `device`."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the model's logits must be a floating-point tensor, got {kind}")
    logits = value[:, -1] if value.ndim == 3 and value.shape[1] > 0 else value
    if logits.ndim != 2 or logits.shape[0] != rows:
        raise ValueError(
            f"the model's logits must have shape ({rows}, length, vocab_size) or ({rows}, vocab_size), "
            f"got {tuple(logits.shape)}"
        )
    if logits.dtype not in _LOGITS_DTYPES:
        logits = logits.float()
    if logits.device != device:
        logits = logits.to(device)
    return logits if logits.stride(-1) == 1 else logits.contiguous()
