"""The checked inputs of a call, one row per prompt: ids, mask, and the other inputs of the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygen.notices import log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """The inputs of a call.

    input_ids: (batch_size, prompt_length) int64, the beginning of every sequence: the prompts, or the decoder's prompts
        of an encoder-decoder model. prompt_length is 0 for `inputs_embeds` without ids.
    mask: (batch_size, at least prompt_length), whose last columns are 0 where `input_ids` are padding; or None.
    main_input: the input that the model reads first: ids, `inputs_embeds`, `input_features`, ...
    main_input_name: its name.
    model_kwargs: the other inputs of the model, in a dict that belongs to the call.
    """

    input_ids: Tensor
    mask: Tensor | None
    main_input: Tensor
    main_input_name: str
    model_kwargs: dict[str, Any]
    is_encoder_decoder: bool = False

    @property
    def embeds_length(self) -> int:
        """The number of embeddings without ids; 0 where the model reads the ids, or an encoder the embeddings."""
        if self.main_input_name != "inputs_embeds" or self.is_encoder_decoder:
            return 0
        if self.main_input.shape[1] == self.input_ids.shape[1]:
            return 0
        return self.main_input.shape[1]

    @property
    def shows_embeddings_alone(self) -> bool:
        """Whether a decoder-only model reads embeddings without any ids."""
        is_embeds = self.main_input_name == "inputs_embeds" and not self.is_encoder_decoder
        return is_embeds and self.input_ids.shape[1] == 0

    def visible(self) -> Tensor | None:
        """(batch_size, prompt_length), the mask of `input_ids`; None where it hides nothing or ids have no mask."""
        length = self.input_ids.shape[1]
        if self.mask is None or self.embeds_length or length == 0 or bool((self.mask != 0).all()):
            return None
        return self.mask[:, -length:]


def given_input(name: str, inputs: object, model_kwargs: dict[str, object]) -> object:
    """The main input: `inputs`, or the one that it removes from `model_kwargs` by name; None without either.

    Errors: ValueError for both.
    """
    by_name = model_kwargs.pop(name, None)
    if inputs is not None and by_name is not None:
        raise ValueError(f"`inputs` and `{name}` are the same argument; pass one of them")
    return inputs if inputs is not None else by_name


def check_ids(
    name: str, ids: object, device: torch.device | None, *, min_length: int = 1, rows: int | None = None
) -> Tensor:
    """`ids` as (batch_size, length) int64, length at least `min_length`, and batch_size `rows` unless that is None.

    Errors: TypeError for anything but a tensor of integers, ValueError for another shape or device.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(ids).__name__}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"`{name}` must hold integers, got {ids.dtype}")
    if ids.ndim != 2 or ids.shape[0] == 0 or ids.shape[1] < min_length:
        raise ValueError(
            f"`{name}` must have shape (batch_size, prompt_length), both at least 1, got {tuple(ids.shape)}"
        )
    if rows is not None and ids.shape[0] != rows:
        raise ValueError(f"`{name}` must hold one row per input ({rows}), got shape {tuple(ids.shape)}")
    check_device(name, ids, device)
    return ids.long()


def check_device(name: str, value: Tensor, device: torch.device | None) -> None:
    """ValueError for a tensor on another kind of device than `device`; None allows any."""
    if device is not None and value.device.type != device.type:
        raise ValueError(f"`{name}` must be on the model's device {device}, got {value.device}")


def check_mask(name: str, mask: object, read: Tensor, *, read_name: str, continues: bool) -> None:
    """TypeError or ValueError unless `mask` is a tensor (batch_size, length); `read` is (batch_size, length, ...).

    continues: a cache holds earlier positions, so the mask may have more columns.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(mask).__name__}")
    longer = continues and mask.ndim == 2 and mask.shape[0] == read.shape[0] and mask.shape[1] > read.shape[1]
    if mask.shape != read.shape[:2] and not longer:
        raise ValueError(
            f"`{name}` must have the shape of `{read_name}` {tuple(read.shape[:2])}, got {tuple(mask.shape)}"
        )


def start_ids(bos_token_id: int | None, model_kwargs: Mapping[str, object], device: torch.device | None) -> Tensor:
    """(batch_size, 1) int64: the prompts of a call without `input_ids`, one per row of the first other input.

    Errors: ValueError without a `bos_token_id` >= 0.
    """
    if bos_token_id is None:
        raise ValueError("`bos_token_id` must be set where no `input_ids` are given")
    if bos_token_id < 0:
        raise ValueError(f"`bos_token_id` must be an id >= 0 where no `input_ids` are given, got {bos_token_id}")
    tensors = [value for value in model_kwargs.values() if isinstance(value, Tensor) and value.ndim]
    batch_size = tensors[0].shape[0] if tensors else 1
    return torch.full((batch_size, 1), bos_token_id, dtype=torch.int64, device=device)


def warn_of_right_padding(input_ids: Tensor, mask: Tensor | None, pad_token_id: int | None) -> None:
    """Logs a warning if the last column of several prompts holds padding."""
    if input_ids.shape[0] == 1 or pad_token_id is None:
        return
    last = mask[:, -1] == 0 if mask is not None else input_ids[:, -1] == pad_token_id
    if bool(last.any()):
        log(
            logger,
            "Prompts seem to be padded on the right; a decoder-only model continues correctly only prompts that "
            "are padded on the left (`padding_side='left'`).",
        )
