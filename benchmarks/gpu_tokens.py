"""Decides whether tokens may differ from those of transformers: only where rounding decides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Relative to the largest score of a row: eight bfloat16 steps, because every layer of the model rounds to bfloat16.
BAND = 2.0**-5
_ROWS_AT_ONCE = 8


def agreeing_percent(ours: Tensor, theirs: Tensor, new_tokens: int) -> float:
    """Returns the share of equal generated tokens. After its first difference a row diverges."""
    if ours.shape != theirs.shape:
        return 0.0
    return 100 * float((ours[:, -new_tokens:] == theirs[:, -new_tokens:]).float().mean())


def fault(model: Any, prompt: Tensor, ours: Tensor, theirs: Tensor, settings: dict[str, Any]) -> str:
    """Returns what is wrong with `ours`, (rows, length) like `theirs`, or "".

    The model reads each text again, in one forward. By its scores, within BAND,
        greedy:     every token is the best one
        sampling:   every token is among the `top_k` best
        beams:      every token is among the 2 * `num_beams` best, of which a search takes its candidates

    A search whose candidates rounding has exchanged may end in a less probable text, so the probability of a text says
    nothing; `fault_of_search` compares searches where rounding is small.
    """
    if ours.shape != theirs.shape:
        return f"the tokens have shape {tuple(ours.shape)}, those of transformers {tuple(theirs.shape)}"
    new_tokens = settings["max_new_tokens"]
    for first in range(0, len(ours), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        scores = scores_of(model, prompt[part], ours[part], new_tokens)
        chosen = scores.gather(2, ours[part, -new_tokens:, None])[..., 0]
        band = BAND * scores.abs().amax(-1)
        beams = settings.get("num_beams", 1)
        kept = 2 * beams if beams > 1 else settings["top_k"] if settings["do_sample"] else 1
        least = scores.topk(min(kept, scores.shape[-1])).values[..., -1]
        at = (chosen < least - band).nonzero().tolist()
        if at:
            row, step = at[0]
            return f"row {first + row}, token {step}: not one that the model's scores allow"
    return ""


def fault_of_search(ours: Tensor, theirs: Tensor) -> str:
    """Returns what is wrong with the texts of two beam searches over float32 scores, or "".

    Candidates closer than rounding are rare there: they may make one row in four differ.
    """
    different = (ours != theirs).any(1).nonzero()[:, 0].tolist() if ours.shape == theirs.shape else [*range(len(ours))]
    return f"in float32, rows {different} differ" if len(different) * 4 > len(ours) else ""


@torch.no_grad()
def scores_of(model: Any, prompt: Tensor, tokens: Tensor, new_tokens: int) -> Tensor:
    """Returns (rows, new_tokens, vocab_size) float32: the scores for the last `new_tokens` positions of `tokens`."""
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "decoder_input_ids": tokens[:, :-1]}
        logits = model(**inputs, use_cache=False).logits
    else:
        logits = model(input_ids=tokens[:, :-1], use_cache=False, logits_to_keep=new_tokens).logits
    found: Tensor = logits[:, -new_tokens:].float()
    return found
