"""How far an encoder's output reaches in captured steps: up to a bucket where the model can hide the rest."""

from __future__ import annotations

import inspect
from typing import Any

from pygen.graph.static_cache import bucket
from pygen.request.prompt import Prompt

# Positions that hold no text in any call. A model may leave its mask away where nothing is hidden, and a capture keeps
# what it did; with these there always is something.
_NEVER_VISIBLE = 8

# Positions that outputs are padded to; or, where they are not, the shape of what the encoder reads of a row.
EncoderSize = int | tuple[int, ...] | None


def encoder_size(model: Any, prompt: Prompt) -> EncoderSize:
    """What calls must have in common to share a capture; None without an encoder.

    Text is padded: a model that takes a mask of it hides what is masked from its decoder, since prompts of unequal
    length could not be in one batch otherwise.
    """
    if not model.config.is_encoder_decoder:
        return None
    read, given = prompt.main_input, prompt.model_kwargs.get("encoder_outputs")
    if given is not None:
        read = given.last_hidden_state[:, :, 0]
    is_text = prompt.main_input_name in ("input_ids", "inputs_embeds")
    mask = prompt.model_kwargs.get("attention_mask")
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    if is_text and takes_mask and (mask is None or mask.shape == read.shape[:2]):
        return bucket(read.shape[1]) + _NEVER_VISIBLE
    return tuple(read.shape[1:])
