"""Classifier-free guidance: scores pushed away from those of an unconditional prompt (Sanchez et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pygen.processors.base import LogitsProcessor
from pygen.processors.unconditional import UnconditionalText, unconditional_of_arguments, unconditional_of_call

if TYPE_CHECKING:
    from pygen.call.call import Call


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

    Every step runs one more forward, with a separate cache. An instance serves one generation, whose prompts are the
    `input_ids` of the first call. A scale of 1 is log_softmax(scores) without a forward. A beam search must call
    `reorder_cache` after each step; groups of beams use one `clone` each.

    model: any that `pygen.generate` takes. An encoder-decoder model reads the same text behind other inputs.
    unconditional_ids: (batch_size, length), each for as many adjacent rows as a prompt has; None is the last token
        of every prompt. The encoder of an encoder-decoder model reads them.
    unconditional_attention_mask: of the same shape, 0 for padding, which does not change the result; None is all ones.
    """

    def __init__(
        self,
        guidance_scale: float,
        model: nn.Module,
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
        self._call: Call | None = None
        self._text: UnconditionalText | None = None
        self._prompt_length = 0

    @classmethod
    def of_call(cls, call: Call) -> UnbatchedClassifierFreeGuidanceLogitsProcessor:
        """The processor that the settings of a call ask for."""
        scale, use_cache = call.config.guidance_scale or 1.0, call.config.use_cache is not False
        ids, mask = call.negative_prompt_ids, call.negative_prompt_attention_mask
        processor = cls(scale, call.model, ids, mask, use_cache=use_cache)
        processor._call = call
        return processor

    def prepare(self) -> None:
        """Checks the arguments of a call before its model runs."""
        if self._call is not None and self._text is None:
            self._text = unconditional_of_call(self._call)
            self._prompt_length = self._call.prompt.input_ids.shape[1]

    def clone(self) -> UnbatchedClassifierFreeGuidanceLogitsProcessor:
        """A new processor with the same arguments, before its first step."""
        context = self.unconditional_context
        copy = type(self)(
            self.guidance_scale, self.model, context["input_ids"], context["attention_mask"], context["use_cache"]
        )
        copy._call = self._call
        return copy

    def get_unconditional_logits(self, input_ids: Tensor) -> Tensor:
        """(rows, 1, vocab_size) of one more forward; `input_ids` is the conditional sequence."""
        context = self.unconditional_context
        self.prepare()
        if self._text is None:
            ids, mask, use_cache = (context[name] for name in ("input_ids", "attention_mask", "use_cache"))
            self._text = unconditional_of_arguments(self.model, ids, mask, use_cache, input_ids)
            self._prompt_length = input_ids.shape[1]
        logits = self._text.advance(input_ids[:, self._prompt_length :])
        context["first_pass"], context["past_key_values"] = False, self._text.cache
        return logits[:, None]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes row i continue row beam_idx[i] of the same prompt."""
        if self._text is not None:
            self._text.reorder(beam_idx)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        conditional = scores.log_softmax(dim=-1)
        if self.guidance_scale == 1:
            return conditional
        unconditional = self.get_unconditional_logits(input_ids)[:, -1].log_softmax(dim=-1)
        return self.guidance_scale * (conditional - unconditional) + unconditional
