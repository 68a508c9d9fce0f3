"""Inputs and outputs that all adapters handle alike: growing masks and positions, and the last logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygen.ops._growth import first_capacity, grown_capacity

_LOGITS_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def mask_from_padding(input_ids: Tensor, pad_token_id: int | None, eos_token_ids: list[int] | None) -> Tensor:
    """The default mask, (batch_size, length) int64.

    It hides pad tokens, except where a pad token may also end a text, because such a prompt may mean the latter.
    """
    if pad_token_id is None or (eos_token_ids is not None and pad_token_id in eos_token_ids):
        return torch.ones_like(input_ids)
    return (input_ids != pad_token_id).long()


def position_ids_from_mask(attention_mask: Tensor) -> Tensor:
    """(batch_size, length) int64, positions that count visible tokens only; masked ones get 0."""
    return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)


class GrowingInputs:
    """Inputs whose last dimension grows by one per token: buffers extend many tokens ahead, and each step slices them.

    The values at generated positions are: attention_mask 1, position_ids the previous one + 1, token_type_ids the
    prompt's last one, mm_token_type_ids 0 (text). For an encoder-decoder model the decoder's inputs grow.
    """

    KINDS = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")

    def __init__(self, model_kwargs: dict[str, object], max_new_tokens: int, is_encoder_decoder: bool = False) -> None:
        """Removes the growing inputs from `model_kwargs`."""
        decoder = "decoder_" if is_encoder_decoder else ""
        self._buffers: list[tuple[str, Tensor, int]] = []
        for kind in self.KINDS:
            name = kind if kind.endswith("type_ids") else decoder + kind
            value = model_kwargs.get(name)
            if isinstance(value, Tensor):
                del model_kwargs[name]
                buffer = torch.cat([value, self._tail(kind, value, first_capacity(max_new_tokens))], dim=-1)
                self._buffers.append((name, buffer, value.shape[-1]))
        self._capacity = first_capacity(max_new_tokens)

    @staticmethod
    def _tail(kind: str, value: Tensor, count: int) -> Tensor:
        shape = (*value.shape[:-1], count)
        if kind == "attention_mask":
            return value.new_ones(shape)
        if kind == "mm_token_type_ids":
            return value.new_zeros(shape)
        if kind == "position_ids":
            return value[..., -1:] + torch.arange(1, count + 1, dtype=value.dtype, device=value.device)
        return value[..., -1:].expand(shape)

    def _reserve(self, generated: int) -> None:
        capacity = grown_capacity(self._capacity, generated)
        more = capacity - self._capacity
        self._buffers = [
            (name, torch.cat([buffer, self._tail(name.removeprefix("decoder_"), buffer, more)], dim=-1), length)
            for name, buffer, length in self._buffers
        ]
        self._capacity = capacity

    def after(self, generated: int) -> dict[str, Tensor]:
        """Views of the prompt and the first `generated` tokens; below 0, of the prompt without its last ones."""
        if generated > self._capacity:
            self._reserve(generated)
        return {name: buffer[..., : length + generated] for name, buffer, length in self._buffers}

    def at(self, generated: int) -> dict[str, Tensor]:
        """Views of one column, that of the newest of `generated` tokens."""
        if generated > self._capacity:
            self._reserve(generated)
        return {
            name: buffer[..., length + generated - 1 : length + generated] for name, buffer, length in self._buffers
        }

    def can_select(self, rows: int) -> bool:
        """Whether the first of two dimensions counts the `rows` rows in all inputs."""
        return all(buffer.ndim == 2 and buffer.shape[0] == rows for _, buffer, _ in self._buffers)

    def select(self, rows: Tensor) -> None:
        """Row r becomes the previous row `rows[r]`; it requires `can_select`."""
        self._buffers = [
            (name, buffer.index_select(0, rows.to(buffer.device)), length) for name, buffer, length in self._buffers
        ]

    def expand(self, num_copies: int, batch_size: int) -> None:
        """Repeats every row; the copies are adjacent."""
        self._buffers = [
            (name, repeat_rows(buffer, num_copies, batch_size), length) for name, buffer, length in self._buffers
        ]


def repeat_rows(value: object, num_copies: int, batch_size: int) -> Any:
    """Repeats every row of a tensor, or of tensors in nested tuples; anything without a batch dimension stays."""
    if isinstance(value, tuple):
        return tuple(repeat_rows(item, num_copies, batch_size) for item in value)
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch_size:
        return value.repeat_interleave(num_copies, dim=0)
    return value


def tail_logits(value: object, rows: int, count: int, device: torch.device) -> Tensor:
    """The last `count` positions of a model's logits, in a dtype that the ops take, on `device`.

    (rows, length, vocab_size), or (rows, vocab_size) where `count` is 1 -> (rows, count, vocab_size)

    Errors: TypeError for anything but a tensor of floats, ValueError for another shape.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the model's logits must be a floating-point tensor, got {kind}")
    logits = value[:, None] if value.ndim == 2 and count == 1 else value
    if logits.ndim != 3 or logits.shape[0] != rows or logits.shape[1] < count:
        raise ValueError(
            f"the model's logits must have shape ({rows}, length, vocab_size) or ({rows}, vocab_size), "
            f"got {tuple(value.shape)}"
        )
    logits = logits[:, -count:]
    if logits.dtype not in _LOGITS_DTYPES:
        logits = logits.float()
    if logits.device != device:
        logits = logits.to(device)
    return logits if logits.stride(-1) == 1 else logits.contiguous()
