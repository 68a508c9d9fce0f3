"""Classifier-free guidance: scores pushed away from those of an unconditional prompt (Sanchez et al. 2023)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from pygen.integrations.versions import cache_parameter, output_cache
from pygen.processors._checks import rows_of_batch
from pygen.processors.base import LogitsProcessor


class ClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """u + (c - u) * guidance_scale, with a scale > 1.

    scores: (2 * rows, vocab_size), the conditional rows c and then the unconditional ones u; the result has `rows`.
    """

    def __init__(self, guidance_scale: float) -> None:
        if not guidance_scale > 1:
            raise ValueError(f"`guidance_scale` must be > 1, got {guidance_scale}")
        self.guidance_scale = guidance_scale

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = input_ids.shape[0]
        if scores.shape[0] != 2 * rows:
            raise ValueError(f"`scores` must have two rows for each of `input_ids`, {2 * rows}, got {scores.shape[0]}")
        conditional, unconditional = scores[:rows], scores[rows:]
        return unconditional + (conditional - unconditional) * self.guidance_scale


class UnbatchedClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """u + (c - u) * guidance_scale, with c = log_softmax(scores) and u the same of the unconditional prompt.

    The model is called once more per step, with a cache of its own: an instance serves one generation. A scale of 1 is
    log_softmax(scores) without a call. Beams, whose rows change places, have to call `reorder_cache`.

    model: called with input_ids, and with attention_mask, use_cache and past_key_values where its forward takes them;
        returns logits (rows, length, vocab_size), or an object with `logits` and, for the cache, `past_key_values`.
    unconditional_ids: (batch_size, length), each standing for as many rows side by side as there are; None is the last
        token of every prompt.
    unconditional_attention_mask: of the same shape; None is all ones.
    """

    def __init__(
        self,
        guidance_scale: float,
        model: Any,
        unconditional_ids: torch.LongTensor | Tensor | None = None,
        unconditional_attention_mask: torch.LongTensor | Tensor | None = None,
        use_cache: bool = True,
    ) -> None:
        self.guidance_scale = guidance_scale
        self.model = model
        self.unconditional_context: dict[str, Any] = {
            "input_ids": unconditional_ids,
            "attention_mask": unconditional_attention_mask,
            "use_cache": use_cache,
            "past_key_values": None,
            "first_pass": True,
        }

    def get_unconditional_logits(self, input_ids: Tensor) -> Tensor:
        """(rows, length, vocab_size) of one more forward; `input_ids` is the conditional sequence."""
        context = self.unconditional_context
        newest = input_ids[:, -1:]
        if context["first_pass"]:
            self._begin(newest)
            unseen = context["input_ids"]
        else:
            context["attention_mask"] = torch.cat([context["attention_mask"], torch.ones_like(newest)], dim=1)
            unseen = newest if context["use_cache"] else torch.cat([context["input_ids"], newest], dim=1)
            context["input_ids"] = unseen
        inputs = {name: context[name] for name in ("attention_mask", "use_cache", "past_key_values")}
        output = self.model(unseen, **_accepted(self.model, inputs))
        context["past_key_values"] = output_cache(output)
        if context["past_key_values"] is None:
            context["use_cache"] = False
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i goes on from what was row beam_idx[i]."""
        context = self.unconditional_context
        if context["first_pass"]:
            return
        context["input_ids"], context["attention_mask"] = (
            context["input_ids"][beam_idx],
            context["attention_mask"][beam_idx],
        )
        if context["past_key_values"] is not None:
            context["past_key_values"].reorder_cache(beam_idx)

    def _begin(self, newest: Tensor) -> None:
        context = self.unconditional_context
        for name in ("input_ids", "attention_mask"):
            if context[name] is not None:
                context[name] = rows_of_batch(f"unconditional_{name}", context[name], newest.shape[0])
        if context["input_ids"] is None:
            context["input_ids"] = newest
        if context["attention_mask"] is None:
            context["attention_mask"] = torch.ones_like(context["input_ids"])
        context["first_pass"] = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        conditional = scores.log_softmax(dim=-1)
        if self.guidance_scale == 1:
            return conditional
        unconditional = self.get_unconditional_logits(input_ids)[:, -1].log_softmax(dim=-1)
        return self.guidance_scale * (conditional - unconditional) + unconditional


def _accepted(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Those inputs that the model's forward takes."""
    parameters = inspect.signature(getattr(model, "forward", model)).parameters
    cache_name = cache_parameter(parameters)
    if cache_name is not None:
        inputs[cache_name] = inputs.pop("past_key_values")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return inputs
    return {name: value for name, value in inputs.items() if name in parameters}
