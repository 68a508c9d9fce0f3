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
        beams:      the text is at least as probable as that of transformers
    """
    if ours.shape != theirs.shape:
        return f"the tokens have shape {tuple(ours.shape)}, those of transformers {tuple(theirs.shape)}"
    new_tokens = settings["max_new_tokens"]
    for first in range(0, len(ours), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        scores = scores_of(model, prompt[part], ours[part], new_tokens)
        chosen = scores.gather(2, ours[part, -new_tokens:, None])[..., 0]
        band = BAND * scores.abs().amax(-1)
        if settings.get("num_beams", 1) > 1:
            others = scores_of(model, prompt[part], theirs[part], new_tokens)
            worse = _mean_logprob(others, theirs[part]) - band.mean(1) - _mean_logprob(scores, ours[part])
            at = (worse > 0).nonzero().tolist()
        else:
            kept = settings["top_k"] if settings["do_sample"] else 1
            least = scores.topk(min(kept, scores.shape[-1])).values[..., -1]
            at = (chosen < least - band).nonzero().tolist()
        if at:
            row, *step = at[0]
            where = f"row {first + row}" + (f", token {step[0]}" if step else "")
            return f"{where}: not one that the model's scores allow"
    return ""


def _mean_logprob(scores: Tensor, tokens: Tensor) -> Tensor:
    chosen = scores.log_softmax(-1).gather(2, tokens[:, -scores.shape[1] :, None])
    return chosen[..., 0].mean(1)


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
